// ambit-cni is the last plugin of a node's CNI chain. It keeps a pod of the mesh from running before
// it is captured: it hands the pod's network namespace to the node agent and waits for the answer.
//
// Without an answer it asks the API server whether the pod belongs to the mesh (decide.go), so that
// pods of the mesh never start in the open and all others start whatever happens to the mesh.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// How long ADD goes on trying while nobody can say yes. An upgrade of the agent takes less;
	// after it kubelet makes a new sandbox and tries again by itself.
	patience = 15 * time.Second
	pause    = 250 * time.Millisecond
	// The agent's own limit is 20 s (node_agent/cni_server.py): its reason is better than ours.
	answerWithin = 25 * time.Second
	askWithin    = 2 * time.Second // of everything that is not ADD
)

// Before 0.3.0 there is no prevResult, and so no chain to be the last of.
var versions = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: cmdAdd, Del: cmdDel, Check: cmdCheck, GC: cmdGC, Status: cmdStatus,
	}, versions, "ambit-cni: has pods of the mesh captured before they run")
}

func cmdAdd(args *skel.CmdArgs) error {
	conf, err := readConf(args.StdinData)
	if err != nil {
		return err
	}
	prev, addresses, err := readPrev(conf, args.IfName)
	if err != nil {
		return err
	}
	pod := readPod(args)
	log := newLog(conf.LogFile)
	if pod.Name == "" || conf.exempt(pod.Namespace) {
		return types.PrintResult(prev, conf.CNIVersion)
	}
	request := &request{Command: "ADD", Pod: pod, Addresses: addresses, Netns: args.Netns, IfName: args.IfName}
	w := &waiting{
		agent: func(ctx context.Context) (answer, error) { return ask(ctx, conf.Socket, request) },
		mesh:  func(ctx context.Context) verdict { return newJudge(conf).decide(ctx, pod) },
		log:   log, pod: pod, socket: conf.Socket, patience: patience, pause: pause,
	}
	if err := w.run(context.Background()); err != nil {
		log.printf("ADD %s sandbox %s: refused: %v", pod, pod.Sandbox, err)
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return types.PrintResult(prev, conf.CNIVersion)
}

// cmdDel tells the agent that a sandbox goes. Nothing that fails here may keep a pod from ending.
func cmdDel(args *skel.CmdArgs) error {
	conf, err := readConf(args.StdinData)
	if err != nil {
		return nil
	}
	pod := readPod(args)
	if pod.Name == "" || conf.exempt(pod.Namespace) {
		return nil
	}
	tell(conf, &request{Command: "DEL", Pod: pod})
	return nil
}

// cmdCheck fails only when the agent says that a pod of the mesh is not captured.
func cmdCheck(args *skel.CmdArgs) error {
	conf, err := readConf(args.StdinData)
	if err != nil {
		return err
	}
	pod := readPod(args)
	if pod.Name == "" || conf.exempt(pod.Namespace) {
		return nil
	}
	if a := tell(conf, &request{Command: "CHECK", Pod: pod}); a.Error != "" {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("pod %s: %s", pod, a.Error), "")
	}
	return nil
}

// cmdGC tells the agent which sandboxes are left.
func cmdGC(args *skel.CmdArgs) error {
	conf, err := readConf(args.StdinData)
	if err != nil {
		return nil
	}
	valid := make([]string, 0, len(conf.ValidAttachments))
	for _, a := range conf.ValidAttachments {
		valid = append(valid, a.ContainerID)
	}
	tell(conf, &request{Command: "GC", Valid: valid})
	return nil
}

// cmdStatus is always content: a runtime takes a failure for a node without a network and drains it.
// Whether a pod can start without the agent is decided pod by pod.
func cmdStatus(args *skel.CmdArgs) error {
	_, err := readConf(args.StdinData)
	return err
}

func tell(conf *netConf, r *request) answer {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	a, err := ask(ctx, conf.Socket, r)
	if err != nil && !os.IsNotExist(err) {
		newLog(conf.LogFile).printf("%s %s: the node agent does not answer: %v", r.Command, r.Pod, err)
	}
	return a
}
