package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const maxAnswer = 16 << 10 // bytes; node_agent/cni_protocol.py

// request is one datagram to the agent; ADD carries the pod's network namespace as a descriptor.
type request struct {
	Command   string   `json:"command"` // ADD, DEL, CHECK, GC
	Pod       podID    `json:"pod"`
	Addresses []string `json:"addresses,omitempty"`
	Netns     string   `json:"netns,omitempty"`
	IfName    string   `json:"ifName,omitempty"`
	Valid     []string `json:"valid,omitempty"`
}

// answer is the agent's one datagram back. An empty Error is success.
type answer struct {
	Captured bool   `json:"captured"` // false: the pod does not belong to the mesh
	Error    string `json:"error"`
}

// ask makes one connection for one question. An error means that there was no answer.
func ask(ctx context.Context, socket string, r *request) (answer, error) {
	var a answer
	body, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	var rights []byte
	if r.Netns != "" {
		netns, err := os.Open(r.Netns)
		if err != nil {
			return answer{Error: fmt.Sprintf("its network namespace cannot be opened: %v", err)}, nil
		}
		defer netns.Close()
		rights = syscall.UnixRights(int(netns.Fd()))
	}
	dialer := net.Dialer{}
	c, err := dialer.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return a, err
	}
	defer c.Close()
	conn := c.(*net.UnixConn)
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(answerWithin)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return a, err
	}
	if _, _, err := conn.WriteMsgUnix(body, rights, nil); err != nil {
		return a, err
	}
	buffer := make([]byte, maxAnswer)
	n, err := conn.Read(buffer)
	if err != nil {
		return a, err
	}
	if n == 0 {
		return a, io.EOF
	}
	if err := json.Unmarshal(buffer[:n], &a); err != nil {
		return a, fmt.Errorf("its answer is not JSON: %w", err)
	}
	return a, nil
}

// waiting is one ADD between the agent and the API server.
type waiting struct {
	agent    func(context.Context) (answer, error)
	mesh     func(context.Context) verdict
	log      *logFile
	pod      podID
	socket   string
	patience time.Duration
	pause    time.Duration
}

// run returns nil when the pod may start: the agent has captured it, or it is none of the mesh's
// business. Otherwise the error says who, why, and what to do.
func (w *waiting) run(ctx context.Context) error {
	began := time.Now()
	var last verdict
	for {
		asked, cancel := context.WithTimeout(ctx, answerWithin)
		a, err := w.agent(asked)
		cancel()
		if err == nil && a.Error == "" {
			return nil
		}
		if err == nil {
			return fmt.Errorf("pod %s is not captured by the mesh: %s", w.pod, a.Error)
		}
		last = w.mesh(ctx)
		if last.pass && (last.certain || time.Since(began) >= w.patience) {
			if last.why != "" {
				w.log.printf("ADD %s sandbox %s: started without the mesh: %s", w.pod, w.pod.Sandbox, last.why)
			}
			return nil
		}
		if last.certain || time.Since(began) >= w.patience {
			return fmt.Errorf("pod %s: the node agent does not answer at %s (%s) and %s; kubelet tries again. Next step: %s",
				w.pod, w.socket, why(err), last.why, last.next)
		}
		time.Sleep(w.pause)
	}
}

func why(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "it is not running"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "it has stopped"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, io.EOF):
		return "it was stopped meanwhile"
	}
	return err.Error()
}
