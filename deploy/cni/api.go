package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	maxObject     = 4 << 20 // bytes of an answer: metadata alone, yet annotations may be large
	maxKubeconfig = 1 << 20
	// Metadata is all that is asked for; the server leaves out the rest.
	onlyMetadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
)

// apiServer is one API server with the credentials that the agent left on the node.
type apiServer struct {
	address string
	token   string
	expiry  time.Time // of the token, by its own word
	client  *http.Client
}

type object struct {
	UID         string            `json:"uid"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// statusError is an answer that is no object. date is the server's clock, zero if it did not say.
// missing: the server knows the kind and has no object of that name. A 404 of a server that starts, or
// of something in between, is not that.
type statusError struct {
	code    int
	message string
	missing bool
	date    time.Time
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %s", e.code, e.message) }

func isMissing(err error) bool {
	var refused *statusError
	return errors.As(err, &refused) && refused.missing
}

// kubeconfig in JSON, as the agent writes it (node_agent/cni_token.py).
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CA     []byte `json:"certificate-authority-data"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Token string `json:"token"`
		} `json:"user"`
	} `json:"users"`
}

func readKubeconfig(path string) (*apiServer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxKubeconfig))
	if err != nil {
		return nil, err
	}
	var k kubeconfig
	if err := json.Unmarshal(raw, &k); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, fmt.Errorf("%s: one cluster and one user are expected", path)
	}
	expiry, err := expiryOf(k.Users[0].User.Token)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(k.Clusters[0].Cluster.CA) {
		return nil, fmt.Errorf("%s: no certificate in certificate-authority-data", path)
	}
	address := strings.TrimSuffix(k.Clusters[0].Cluster.Server, "/")
	if !strings.HasPrefix(address, "https://") {
		return nil, fmt.Errorf("%s: server %q is not https", path, address)
	}
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   2 * time.Second,
		ResponseHeaderTimeout: 3 * time.Second,
		MaxIdleConnsPerHost:   1,
	}
	never := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client := &http.Client{Transport: transport, CheckRedirect: never}
	return &apiServer{address, k.Users[0].User.Token, expiry, client}, nil
}

// expiryOf reads a JWT's `exp`. Nothing rests on its truth: the server judges the token.
func expiryOf(token string) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, errors.New("its token is no JWT")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, errors.New("its token is no JWT")
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil || claims.Exp == 0 {
		return time.Time{}, errors.New("its token says no time of expiry")
	}
	return time.Unix(claims.Exp, 0), nil
}

// get reads an object's metadata. Errors: *statusError, or whatever kept the server from answering.
func (a *apiServer) get(ctx context.Context, path string) (object, error) {
	var found struct {
		Metadata object `json:"metadata"`
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.address+path, nil)
	if err != nil {
		return object{}, err
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	r.Header.Set("Accept", onlyMetadata)
	r.Header.Set("User-Agent", "ambit-cni")
	answer, err := a.client.Do(r)
	if err != nil {
		return object{}, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxObject))
	if err != nil {
		return object{}, err
	}
	if answer.StatusCode != http.StatusOK {
		refused := refusal(answer.StatusCode, raw, path[strings.LastIndex(path, "/")+1:])
		refused.date, _ = http.ParseTime(answer.Header.Get("Date"))
		return object{}, refused
	}
	if err := json.Unmarshal(raw, &found); err != nil {
		return object{}, fmt.Errorf("the answer to %s is not JSON: %w", path, err)
	}
	return found.Metadata, nil
}

func (a *apiServer) close() { a.client.CloseIdleConnections() }

func refusal(code int, raw []byte, name string) *statusError {
	var status struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
		Reason  string `json:"reason"`
		Details struct {
			Name string `json:"name"`
		} `json:"details"`
	}
	refused := &statusError{code: code, message: strings.TrimSpace(string(raw))}
	if json.Unmarshal(raw, &status) == nil && status.Kind == "Status" {
		refused.message = status.Message
		refused.missing = code == http.StatusNotFound && status.Reason == "NotFound" && status.Details.Name == name
	}
	if len(refused.message) > 300 {
		refused.message = refused.message[:300]
	}
	return refused
}
