package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What the plugin does when the agent does not answer. In this order:
//
//	the pod is known and not to be enrolled          start it
//	the pod is to be enrolled, DaemonSet is there    refuse: the agent will be back
//	the DaemonSet is gone (404)                      start it: the mesh was removed
//	the token is refused (401) though not expired    start it, once no agent's pod is left on the node
//	the token is expired, or there is none           refuse for grace; then as 401
//	the account may not ask (403)                    refuse: somebody must mend or remove that
//	no answer from the API server                    refuse: nobody knows what the pod is
//
// A 401 alone proves nothing: an API server that cannot reach its store says it too. So it is asked
// again until patience ends, and the folder in which kubelet keeps the logs of the agent's pod must
// be gone: kubelet removes it a minute after the pod has left the node, with or without the API.
const (
	apiWithin = 4 * time.Second
	grace     = 10 * time.Minute // after boot and after expiry: kubelet starts the agent in that time
)

const (
	labelMode       = "istio.io/dataplane-mode"
	sidecarStatus   = "sidecar.istio.io/status"
	mirrorOf        = "kubernetes.io/config.mirror"
	nextAgent       = "kubectl -n %s get pods -o wide -l app=%s"
	nextUnreachable = "see whether this node reaches the API server"
)

// verdict is whether a pod may start without the agent. certain: asking again changes nothing.
type verdict struct {
	pass    bool
	certain bool
	why     string // "" for a pod that has no part in the mesh
	next    string
}

type judge struct {
	conf    *netConf
	now     func() time.Time
	uptime  func() time.Duration
	connect func(path string) (*apiServer, error)
}

func newJudge(conf *netConf) *judge {
	return &judge{conf: conf, now: time.Now, uptime: uptime, connect: readKubeconfig}
}

func (j *judge) decide(ctx context.Context, pod podID) verdict {
	ctx, cancel := context.WithTimeout(ctx, apiWithin)
	defer cancel()
	api, err := j.connect(j.conf.Kubeconfig)
	if err != nil {
		return j.noToken(fmt.Sprintf("it left no usable credentials for the API server (%v)", err), 0)
	}
	defer api.close()
	if expired := j.now().Sub(api.expiry); expired >= 0 {
		return j.noToken(fmt.Sprintf("its token for the API server expired %s ago", expired.Round(time.Second)), expired)
	}
	enrolled, err := j.enrolled(ctx, api, pod)
	if err == nil && !enrolled {
		return verdict{pass: true, certain: true}
	}
	if err == nil {
		_, err = api.get(ctx, "/apis/apps/v1/namespaces/"+j.conf.Namespace+"/daemonsets/"+j.conf.DaemonSet)
		if isMissing(err) {
			return verdict{pass: true, certain: true, why: fmt.Sprintf("DaemonSet %s/%s does not exist: the mesh was removed", j.conf.Namespace, j.conf.DaemonSet)}
		}
	}
	if err == nil {
		return verdict{why: "the pod belongs to the mesh", next: j.agents()}
	}
	return j.failed(api, err)
}

// enrolled applies the rules of mesh/enrolment.py.
func (j *judge) enrolled(ctx context.Context, api *apiServer, id podID) (bool, error) {
	namespace, err := api.get(ctx, "/api/v1/namespaces/"+id.Namespace)
	if err != nil && !isMissing(err) {
		return false, err
	}
	pod, err := api.get(ctx, "/api/v1/namespaces/"+id.Namespace+"/pods/"+id.Name)
	switch {
	case err == nil && !isOf(pod, id.UID), isMissing(err) && !isStatic(id.UID):
		return false, errReplaced
	case err != nil && !isMissing(err):
		return false, err
	}
	// A static pod whose mirror is not there yet has no labels that anybody knows of.
	if _, ok := pod.Annotations[sidecarStatus]; ok {
		return false, nil
	}
	switch pod.Labels[labelMode] {
	case "ambient":
		return true, nil
	case "none":
		return false, nil
	}
	return namespace.Labels[labelMode] == "ambient", nil
}

var errReplaced = errors.New("the API server has no such pod any more")

// isOf: an API server knows a static pod by its mirror, which has another uid.
func isOf(pod object, uid string) bool {
	return uid == "" || pod.UID == uid || pod.Annotations[mirrorOf] == uid
}

// isStatic: the API server gives uids with dashes; kubelet gives its static pods a bare hash.
func isStatic(uid string) bool { return uid != "" && !strings.Contains(uid, "-") }

func (j *judge) failed(api *apiServer, err error) verdict {
	var refused *statusError
	if errors.Is(err, errReplaced) {
		return verdict{certain: true, why: err.Error(), next: "nothing, if the pod was deleted"}
	}
	if !errors.As(err, &refused) {
		return verdict{why: "the API server cannot be asked whether the pod belongs to the mesh: " + err.Error(), next: nextUnreachable}
	}
	if refused.code == http.StatusUnauthorized {
		if expired := refused.date.Sub(api.expiry); !refused.date.IsZero() && expired >= 0 {
			// The node's clock is behind.
			return j.noToken("its token for the API server expired", expired)
		}
		if folder := j.agentsFolder(); folder != "" {
			return verdict{why: "the API server refuses the token it left, while its pod is on the node (" + folder + ")", next: j.agents()}
		}
		return verdict{pass: true, why: "the API server refuses the token that the node agent left, and no pod of it is on the node: the mesh was removed"}
	}
	next := nextUnreachable
	if refused.code == http.StatusForbidden {
		next = "give service account " + j.conf.Namespace + "/ambit-cni its role again, or end what is left of the mesh: ambit uninstall"
	}
	return verdict{why: "the API server does not say whether the pod belongs to the mesh: " + err.Error(), next: next}
}

// noToken judges without the API server. `expired`: for how long there has been no valid token.
func (j *judge) noToken(cause string, expired time.Duration) verdict {
	if up := j.uptime(); up < grace {
		return verdict{why: fmt.Sprintf("%s; the node started %s ago", cause, up.Round(time.Second)), next: j.agents()}
	}
	if expired > 0 && expired < grace {
		return verdict{why: cause, next: j.agents()}
	}
	if folder := j.agentsFolder(); folder != "" {
		return verdict{why: cause + ", while its pod is on the node (" + folder + ")", next: j.agents()}
	}
	return verdict{pass: true, why: cause + ", and no pod of it is on the node: the mesh was removed"}
}

// agentsFolder names kubelet's folder of logs of an agent's pod on this node, "" when there is none.
func (j *judge) agentsFolder() string {
	prefix := j.conf.Namespace + "_" + j.conf.DaemonSet + "-"
	entries, err := os.ReadDir(j.conf.PodLogs)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			return filepath.Join(j.conf.PodLogs, e.Name())
		}
	}
	return ""
}

func (j *judge) agents() string {
	return fmt.Sprintf(nextAgent, j.conf.Namespace, j.conf.DaemonSet)
}

func uptime() time.Duration {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return 0
	}
	return time.Duration(info.Uptime) * time.Second
}
