package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

func anotherCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// agentThatSays is a node agent for one connection after the other; "" closes without an answer.
func agentThatSays(t *testing.T, answers ...string) (socket string, requests chan request) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	requests = make(chan request, len(answers))
	go func() {
		for _, text := range answers {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			data, oob := make([]byte, 1<<16), make([]byte, 64)
			n, oobn, _, _, _ := conn.ReadMsgUnix(data, oob)
			var r request
			_ = json.Unmarshal(data[:n], &r)
			if r.Netns != "" && !carriesDescriptor(oob[:oobn]) {
				r.Netns = "no descriptor came with it"
			}
			requests <- r
			if text != "" {
				_, _ = conn.Write([]byte(text))
			}
			conn.Close()
		}
	}()
	return socket, requests
}

func carriesDescriptor(oob []byte) bool {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return false
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	for _, fd := range fds {
		syscall.Close(fd)
	}
	return err == nil && len(fds) == 1
}

func wait(t *testing.T, socket string, v verdict) (error, string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	r := &request{Command: "ADD", Pod: podID{"shop", "cart", podUID, "c0ffee"}, Netns: "/proc/self/ns/net", Addresses: []string{"10.1.2.3"}}
	w := &waiting{
		agent: func(ctx context.Context) (answer, error) { return ask(ctx, socket, r) },
		mesh:  func(context.Context) verdict { return v },
		log:   newLog(log), pod: r.Pod, socket: socket, patience: 300 * time.Millisecond, pause: 20 * time.Millisecond,
	}
	err := w.run(context.Background())
	text, _ := os.ReadFile(log)
	return err, string(text)
}

func TestCaptured(t *testing.T) {
	socket, requests := agentThatSays(t, `{"captured":true}`)
	if err, log := wait(t, socket, verdict{}); err != nil || log != "" {
		t.Fatalf("%v, log %q", err, log)
	}
	r := <-requests
	if r.Command != "ADD" || r.Pod.UID != podUID || r.Pod.Sandbox != "c0ffee" || r.Netns != "/proc/self/ns/net" || r.Addresses[0] != "10.1.2.3" {
		t.Errorf("%+v", r)
	}
}

func TestAgentRefuses(t *testing.T) {
	socket, _ := agentThatSays(t, `{"error":"port 15001 is taken"}`)
	err, _ := wait(t, socket, verdict{pass: true, certain: true})
	if err == nil || !strings.Contains(err.Error(), "shop/cart") || !strings.Contains(err.Error(), "port 15001 is taken") {
		t.Fatal(err)
	}
}

func TestAgentIsReplacedMeanwhile(t *testing.T) {
	socket, requests := agentThatSays(t, "", "", `{"captured":true}`)
	if err, _ := wait(t, socket, verdict{why: "the pod belongs to the mesh"}); err != nil {
		t.Fatal(err)
	}
	if len(requests) != 3 {
		t.Errorf("asked %d times", len(requests))
	}
}

func TestNobodyAnswers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	cases := []struct {
		name    string
		v       verdict
		started bool
		logged  string
	}{
		{"not of the mesh", verdict{pass: true, certain: true}, true, ""},
		{"mesh removed", verdict{pass: true, certain: true, why: "DaemonSet gone"}, true, "DaemonSet gone"},
		{"token refused for long", verdict{pass: true, why: "token refused"}, true, "token refused"},
		{"of the mesh", verdict{why: "the pod belongs to the mesh", next: "look at the agent"}, false, ""},
		{"pod replaced", verdict{certain: true, why: "replaced", next: "nothing"}, false, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			err, log := wait(t, socket, c.v)
			if c.started != (err == nil) {
				t.Fatal(err)
			}
			if !strings.Contains(log, c.logged) || (c.logged == "" && log != "") {
				t.Errorf("log: %q", log)
			}
			patient := time.Since(began) > 250*time.Millisecond
			if patient == c.v.certain {
				t.Errorf("waited: %v", patient)
			}
			if err == nil {
				return
			}
			for _, word := range []string{"shop/cart", "it is not running", c.v.why, c.v.next} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%v: does not say %q", err, word)
				}
			}
		})
	}
}

func conflistEntry(prev string) string {
	return `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","prevResult":` + prev + `}`
}

const prevResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"veth0"},{"name":"eth0","sandbox":"/run/netns/x"},{"name":"net1","sandbox":"/run/netns/x"}],
"ips":[{"address":"10.9.9.9/32","interface":0},{"address":"10.1.2.3/24","interface":1},{"address":"fd00::3/64","interface":1},{"address":"192.168.9.9/24","interface":2}],"routes":[{"dst":"0.0.0.0/0"}]}`

func TestPrevResult(t *testing.T) {
	conf, err := readConf([]byte(conflistEntry(prevResult)))
	if err != nil {
		t.Fatal(err)
	}
	prev, addresses, err := readPrev(conf, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(addresses, " ") != "10.1.2.3 fd00::3" {
		t.Errorf("addresses %v", addresses)
	}
	if raw, _ := json.Marshal(prev); !strings.Contains(string(raw), "192.168.9.9") {
		t.Errorf("not passed through: %s", raw)
	}
	if _, addresses, _ = readPrev(conf, "net1"); strings.Join(addresses, " ") != "192.168.9.9" {
		t.Errorf("addresses %v", addresses)
	}
	conf, err = readConf([]byte(conflistEntry(`{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}`)))
	if err != nil {
		t.Fatal(err)
	}
	if _, addresses, _ = readPrev(conf, "eth0"); strings.Join(addresses, " ") != "10.1.2.3" {
		t.Errorf("addresses %v", addresses)
	}
}

func TestNotChained(t *testing.T) {
	conf, err := readConf([]byte(`{"cniVersion":"1.0.0","name":"net","type":"ambit-cni"}`))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = readPrev(conf, "eth0")
	var coded *types.Error
	if !errors.As(err, &coded) || coded.Code != types.ErrInvalidNetworkConfig {
		t.Fatal(err)
	}
}

func TestWhosePodItIs(t *testing.T) {
	args := &skel.CmdArgs{ContainerID: "c0ffee", Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u1"}
	if got := readPod(args); got != (podID{"shop", "cart", "u1", "c0ffee"}) {
		t.Errorf("%+v", got)
	}
	if got := readPod(&skel.CmdArgs{ContainerID: "c", Args: "A=B;=;;K8S_POD_NAME=x"}); got.Name != "" {
		t.Errorf("%+v", got)
	}
}

func TestExemptNamespaces(t *testing.T) {
	conf, err := readConf([]byte(`{"meshNamespace":"mesh","exemptNamespaces":["kube-system","system"]}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, exempt := range map[string]bool{"mesh": true, "kube-system": true, "system": true, "shop": false, "istio-system": false} {
		if conf.exempt(name) != exempt {
			t.Errorf("%s: %v", name, !exempt)
		}
	}
}

func TestDelNeverFails(t *testing.T) {
	args := &skel.CmdArgs{ContainerID: "c", Args: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart", StdinData: []byte(`{"socket":"/nowhere","logFile":"/nowhere/log"}`)}
	if err := cmdDel(args); err != nil {
		t.Error(err)
	}
	args.StdinData = []byte("{")
	if err := cmdDel(args); err != nil {
		t.Error(err)
	}
	socket, requests := agentThatSays(t, `{"error":"never heard of it"}`)
	args.StdinData = []byte(`{"socket":"` + socket + `"}`)
	if err := cmdDel(args); err != nil {
		t.Error(err)
	}
	if r := <-requests; r.Command != "DEL" || r.Pod.Sandbox != "c" {
		t.Errorf("%+v", r)
	}
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := newLog(path)
	line := strings.Repeat("x", 100<<10)
	for range 40 {
		log.printf("%s", line)
	}
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil || info.Size() > maxLog+(200<<10) {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}
