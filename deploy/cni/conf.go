package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// netConf is the plugin's entry in the conflist; the node agent writes it (node_agent/cni_conf.py).
type netConf struct {
	types.NetConf
	Socket     string   `json:"socket"`
	Kubeconfig string   `json:"kubeconfig"`
	Namespace  string   `json:"meshNamespace"`
	DaemonSet  string   `json:"daemonSet"`
	Exempt     []string `json:"exemptNamespaces"`
	PodLogs    string   `json:"podLogs"`
	LogFile    string   `json:"logFile"`
}

func (c *netConf) exempt(namespace string) bool {
	for _, name := range c.Exempt {
		if name == namespace {
			return true
		}
	}
	return namespace == c.Namespace
}

func readConf(stdin []byte) (*netConf, error) {
	conf := &netConf{
		Socket:     "/run/ambit/cni.sock",
		Kubeconfig: "/var/lib/ambit/cni/kubeconfig",
		Namespace:  "istio-system",
		DaemonSet:  "ambit-node-agent",
		Exempt:     []string{"kube-system"},
		PodLogs:    "/var/log/pods",
		LogFile:    "/var/log/ambit-cni.log",
	}
	if err := json.Unmarshal(stdin, conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "ambit-cni: the network configuration is not JSON: "+err.Error(), "")
	}
	return conf, nil
}

// readPrev gives what the plugins before made, and the addresses it has inside the pod.
func readPrev(conf *netConf, ifName string) (types.Result, []string, error) {
	if err := version.ParsePrevResult(&conf.NetConf); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "ambit-cni: prevResult: "+err.Error(), "")
	}
	if conf.PrevResult == nil {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig,
			"ambit-cni: no prevResult: it must come after the plugin that makes the pod's interface", "")
	}
	result, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "ambit-cni: prevResult: "+err.Error(), "")
	}
	return conf.PrevResult, podAddresses(result, ifName), nil
}

// podAddresses leaves out what is on the host's ends of interfaces, and on interfaces beside ifName
// where the result tells them apart.
func podAddresses(result *types100.Result, ifName string) []string {
	var own, inside []string
	for _, ip := range result.IPs {
		text := ip.Address.IP.String()
		if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(result.Interfaces) {
			own = append(own, text)
			continue
		}
		at := result.Interfaces[*ip.Interface]
		if at.Sandbox == "" {
			continue
		}
		inside = append(inside, text)
		if at.Name == ifName {
			own = append(own, text)
		}
	}
	if len(own) == 0 {
		return inside
	}
	return own
}

// podID is whose sandbox it is, as kubelet names it to the runtime and the runtime to us.
type podID struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Sandbox   string `json:"sandbox"`
}

func (p podID) String() string { return fmt.Sprintf("%s/%s", p.Namespace, p.Name) }

// readPod reads CNI_ARGS. A sandbox that is not of a Kubernetes pod has an empty Name.
func readPod(args *skel.CmdArgs) podID {
	pod := podID{Sandbox: args.ContainerID}
	for _, pair := range strings.Split(args.Args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch strings.TrimSpace(key) {
		case "K8S_POD_NAMESPACE":
			pod.Namespace = value
		case "K8S_POD_NAME":
			pod.Name = value
		case "K8S_POD_UID":
			pod.UID = value
		}
	}
	if pod.Namespace == "" {
		pod.Name = ""
	}
	return pod
}
