package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const podUID = "0b0a7a53-4a2c-4d0b-9b6e-0d3f5c1f4a11"

type objects map[string]string

func meta(labels, annotations map[string]string, uid string) string {
	raw, _ := json.Marshal(map[string]any{"kind": "PartialObjectMetadata", "metadata": map[string]any{"uid": uid, "labels": labels, "annotations": annotations}})
	return string(raw)
}

func ambient(mode string) map[string]string { return map[string]string{labelMode: mode} }

// fake is an API server that knows `objects` by path; status, when set, is its answer to everything.
type fake struct {
	objects objects
	status  int
	body    string
	date    time.Time
	asked   []string
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.asked = append(f.asked, r.URL.Path)
	if !f.date.IsZero() {
		w.Header().Set("Date", f.date.UTC().Format(http.TimeFormat))
	}
	if f.status != 0 {
		w.WriteHeader(f.status)
		fmt.Fprint(w, f.body)
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if body, ok := f.objects[r.URL.Path]; ok {
		fmt.Fprint(w, body)
		return
	}
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"kind":"Status","reason":"NotFound","message":"%s not found","details":{"name":"%s"}}`, name, name)
}

func token(expiry time.Time) string {
	claims := base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"exp":%d}`, expiry.Unix())))
	return "e30." + claims + ".sig"
}

// world is a node: its kubeconfig, its clock, and the log folders of its pods.
type world struct {
	t      *testing.T
	fake   *fake
	server *httptest.Server
	judge  *judge
	up     time.Duration
	conf   *netConf
}

func newWorld(t *testing.T, f *fake) *world {
	t.Helper()
	server := httptest.NewTLSServer(f)
	t.Cleanup(server.Close)
	folder := t.TempDir()
	conf, err := readConf([]byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	conf.Kubeconfig = filepath.Join(folder, "kubeconfig")
	conf.PodLogs = filepath.Join(folder, "pods")
	conf.LogFile = filepath.Join(folder, "log")
	w := &world{t: t, fake: f, server: server, conf: conf, up: time.Hour}
	w.judge = newJudge(conf)
	w.judge.uptime = func() time.Duration { return w.up }
	w.write(time.Now().Add(time.Hour))
	return w
}

func (w *world) write(expiry time.Time) {
	w.t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.server.Certificate().Raw})
	raw, _ := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": w.server.URL, "certificate-authority-data": ca}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": token(expiry)}}},
	})
	if err := os.WriteFile(w.conf.Kubeconfig, raw, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) agentsPodIsHere() {
	if err := os.MkdirAll(filepath.Join(w.conf.PodLogs, "istio-system_ambit-node-agent-x7k2p_123"), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) decide() verdict {
	return w.judge.decide(context.Background(), podID{"shop", "cart", podUID, "c0ffee"})
}

func (w *world) expect(pass, certain bool, words ...string) {
	w.t.Helper()
	v := w.decide()
	if v.pass != pass || v.certain != certain {
		w.t.Fatalf("pass %v certain %v (%q), want %v %v", v.pass, v.certain, v.why, pass, certain)
	}
	for _, word := range words {
		if !strings.Contains(v.why+" | "+v.next, word) {
			w.t.Errorf("%q | %q does not say %q", v.why, v.next, word)
		}
	}
}

const (
	podPath = "/api/v1/namespaces/shop/pods/cart"
	nsPath  = "/api/v1/namespaces/shop"
	dsPath  = "/apis/apps/v1/namespaces/istio-system/daemonsets/ambit-node-agent"
)

func TestEnrolmentRules(t *testing.T) {
	cases := []struct {
		name                string
		pod, namespace      map[string]string
		annotations         map[string]string
		enrolled, certainly bool
	}{
		{"nobody says anything", nil, nil, nil, false, true},
		{"namespace", nil, ambient("ambient"), nil, true, false},
		{"pod", ambient("ambient"), nil, nil, true, false},
		{"pod out of a namespace", ambient("none"), ambient("ambient"), nil, false, true},
		{"pod in, namespace out", ambient("ambient"), ambient("none"), nil, true, false},
		{"a value nobody knows", ambient("maybe"), ambient("ambient"), nil, true, false},
		{"a sidecar", ambient("ambient"), ambient("ambient"), map[string]string{sidecarStatus: "{}"}, false, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, &fake{objects: objects{
				podPath: meta(c.pod, c.annotations, podUID), nsPath: meta(c.namespace, nil, "n"), dsPath: meta(nil, nil, "d"),
			}})
			w.expect(!c.enrolled, c.certainly)
		})
	}
}

func TestAgentIsAway(t *testing.T) {
	w := newWorld(t, &fake{objects: objects{podPath: meta(nil, nil, podUID), nsPath: meta(ambient("ambient"), nil, "n"), dsPath: meta(nil, nil, "d")}})
	w.expect(false, false, "belongs to the mesh", "kubectl -n istio-system get pods")
}

func TestMeshRemoved(t *testing.T) {
	w := newWorld(t, &fake{objects: objects{podPath: meta(nil, nil, podUID), nsPath: meta(ambient("ambient"), nil, "n")}})
	w.expect(true, true, "DaemonSet istio-system/ambit-node-agent does not exist")
}

func TestServerThatStartsIsNotARemovedMesh(t *testing.T) {
	w := newWorld(t, &fake{status: 404, body: "404 page not found\n"})
	w.expect(false, false, "404 page not found")
	w.fake.body = `{"kind":"Status","reason":"NotFound","message":"the server could not find the requested resource","details":{}}`
	w.expect(false, false, "could not find the requested resource")
}

func TestAnotherPodOfTheSameName(t *testing.T) {
	w := newWorld(t, &fake{objects: objects{podPath: meta(nil, nil, "other"), nsPath: meta(nil, nil, "n")}})
	w.expect(false, true, "no such pod any more")
}

func TestPodThatIsGone(t *testing.T) {
	w := newWorld(t, &fake{objects: objects{nsPath: meta(nil, nil, "n")}})
	w.expect(false, true, "no such pod any more")
}

func TestStaticPods(t *testing.T) {
	hash := strings.ReplaceAll(podUID, "-", "")
	w := newWorld(t, &fake{objects: objects{nsPath: meta(nil, nil, "n"), dsPath: meta(nil, nil, "d")}})
	static := podID{"shop", "cart", hash, "c0ffee"}
	if v := w.judge.decide(context.Background(), static); !v.pass {
		t.Errorf("before its mirror, namespace not of the mesh: %q", v.why)
	}
	w.fake.objects[podPath] = meta(ambient("ambient"), map[string]string{mirrorOf: hash}, "mirror")
	if v := w.judge.decide(context.Background(), static); v.pass || v.certain {
		t.Errorf("by its mirror's label it belongs to the mesh: %+v", v)
	}
	delete(w.fake.objects, podPath)
	w.fake.objects[nsPath] = meta(ambient("ambient"), nil, "n")
	if v := w.judge.decide(context.Background(), static); v.pass {
		t.Error("before its mirror, in a namespace of the mesh: started")
	}
}

func TestTokenRefused(t *testing.T) {
	w := newWorld(t, &fake{status: 401, body: `{"kind":"Status","message":"Unauthorized"}`})
	w.expect(true, false, "no pod of it is on the node", "the mesh was removed")
	w.agentsPodIsHere()
	w.expect(false, false, "while its pod is on the node")
}

func TestTokenRefusedBecauseTheNodesClockIsBehind(t *testing.T) {
	w := newWorld(t, &fake{status: 401, date: time.Now().Add(2 * time.Hour)})
	w.up = time.Minute
	w.expect(false, false, "expired", "the node started 1m0s ago")
}

func TestTokenExpired(t *testing.T) {
	w := newWorld(t, &fake{})
	w.write(time.Now().Add(-5 * time.Minute))
	w.expect(false, false, "expired 5m")
	w.write(time.Now().Add(-time.Hour))
	w.expect(true, false, "the mesh was removed")
	w.up = 9 * time.Minute
	w.expect(false, false, "the node started 9m0s ago")
	w.up = time.Hour
	w.agentsPodIsHere()
	w.expect(false, false, "while its pod is on the node")
	if len(w.fake.asked) != 0 {
		t.Errorf("asked with an expired token: %v", w.fake.asked)
	}
}

func TestNoKubeconfig(t *testing.T) {
	w := newWorld(t, &fake{})
	for _, bad := range []string{"", "{", "{}", `{"clusters":[{}],"users":[{"user":{"token":"x.y"}}]}`} {
		if err := os.WriteFile(w.conf.Kubeconfig, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		w.expect(true, false, "no usable credentials")
	}
	if err := os.Remove(w.conf.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	w.up = time.Second
	w.expect(false, false, "no usable credentials", "the node started 1s ago")
}

func TestForbidden(t *testing.T) {
	w := newWorld(t, &fake{status: 403, body: `{"kind":"Status","message":"namespaces is forbidden"}`})
	w.expect(false, false, "namespaces is forbidden", "istio-system/ambit-cni")
}

func TestServerAway(t *testing.T) {
	w := newWorld(t, &fake{status: 500, body: "etcd"})
	w.expect(false, false, "500 etcd", "reaches the API server")
	w.server.Close()
	w.expect(false, false, "cannot be asked", "reaches the API server")
}

func TestServerOfAnotherAuthority(t *testing.T) {
	w := newWorld(t, &fake{objects: objects{}})
	other := httptest.NewUnstartedServer(w.fake)
	other.StartTLS()
	defer other.Close()
	// httptest gives every server the same certificate: make the pinned one another.
	raw, err := os.ReadFile(w.conf.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	var k map[string]any
	if err := json.Unmarshal(raw, &k); err != nil {
		t.Fatal(err)
	}
	cluster := k["clusters"].([]any)[0].(map[string]any)["cluster"].(map[string]any)
	cluster["certificate-authority-data"] = base64.StdEncoding.EncodeToString(anotherCA(t))
	raw, _ = json.Marshal(k)
	if err := os.WriteFile(w.conf.Kubeconfig, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	w.expect(false, false, "certificate")
	if len(w.fake.asked) != 0 {
		t.Error("the token was sent to a server that is not trusted")
	}
}
