package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

const maxLog = 1 << 20 // bytes, and one older file of the same size

// logFile is opened for each line: most runs write none.
type logFile struct{ path string }

func newLog(path string) *logFile { return &logFile{path} }

// printf appends a line; standard error when that fails, which the runtime keeps.
func (l *logFile) printf(format string, args ...any) {
	line := fmt.Sprintf("%s %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"),
		strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
	if err := l.append(line); err != nil {
		fmt.Fprintf(os.Stderr, "ambit-cni: %s", line)
	}
}

func (l *logFile) append(line string) error {
	flags := os.O_APPEND | os.O_CREATE | os.O_WRONLY | syscall.O_NOFOLLOW
	f, err := os.OpenFile(l.path, flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxLog {
		// One of those that see it full turns it over; for the others it is full a moment longer.
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			if now, err := os.Stat(l.path); err == nil && os.SameFile(info, now) {
				_ = os.Rename(l.path, l.path+".1")
			}
		}
	}
	_, err = f.WriteString(line)
	return err
}
