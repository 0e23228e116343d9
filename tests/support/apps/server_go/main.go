// Go's own HTTP server on an inherited listener: the runtime's netpoller registers it edge-triggered.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	listener, err := net.FileListener(os.NewFile(3, "web"))
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		if request.URL.Path == "/slow" {
			time.Sleep(time.Second)
		}
		answer.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(answer, "{\"version\": \"v1\", \"pid\": %d}", os.Getpid())
	})
	panic(http.Serve(listener, nil))
}
