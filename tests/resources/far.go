// A proxy before an S3 server that makes it as slow and as moody as one far away: far [options] LISTEN UPSTREAM
//
// Every answer comes later by a delay. All connections share a line of so many bytes a second each way, headers included. Some requests get
// 503 in the server's place, and in bursts all of them get 429, as https://developers.cloudflare.com/r2/platform/limits/ announces. Over a
// number of connections, further ones are closed. It prints two addresses: its own, and one that answers how much has passed: in all, and
// from the first PUT below a folder "sheets" to the last.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	delay       = flag.Duration("delay", 0, "how much later each answer comes")
	bandwidth   = flag.Int64("bandwidth", 0, "bytes a second of all connections together, each way; 0: no limit")
	errorEach   = flag.Uint64("error-each", 0, "each so-manyth request gets 503; 0: none")
	burstEach   = flag.Duration("burst-each", 0, "time from burst to burst of 429; 0: no bursts")
	burstFor    = flag.Duration("burst-for", time.Second, "how long a burst lasts")
	connections = flag.Int("connections", 0, "connections at once; 0: no limit")

	counts struct {
		Requests, Refused, InFlight, MostInFlight, Connections, Open, BytesIn, BytesOut atomic.Int64
	}

	sheets struct {
		sync.Mutex
		begun, ended            time.Time
		bytesBefore, bytesAfter int64
	}
)

// line is one way of the line that all connections share.
type line struct {
	mutex sync.Mutex
	free  time.Time
	count *atomic.Int64
}

func (l *line) take(size int) {
	l.count.Add(int64(size))
	if *bandwidth == 0 || size <= 0 {
		return
	}
	l.mutex.Lock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(int64(size) * int64(time.Second) / *bandwidth))
	until := l.free
	l.mutex.Unlock()
	time.Sleep(time.Until(until))
}

var up, down = line{count: &counts.BytesIn}, line{count: &counts.BytesOut}

type proxy struct {
	upstream string
	client   *http.Transport
	begun    time.Time
}

func refuse(answer http.ResponseWriter, status int, code string) {
	counts.Refused.Add(1)
	answer.Header().Set("Content-Type", "application/xml")
	answer.WriteHeader(status)
	_, _ = io.WriteString(answer, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>`+code+`</Code><Message>Reduce your request rate.</Message></Error>`)
}

func (p *proxy) isBurst() bool {
	return *burstEach > 0 && time.Since(p.begun)%*burstEach > *burstEach-*burstFor
}

func (p *proxy) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	number := counts.Requests.Add(1)
	inFlight := counts.InFlight.Add(1)
	defer counts.InFlight.Add(-1)
	for most := counts.MostInFlight.Load(); inFlight > most && !counts.MostInFlight.CompareAndSwap(most, inFlight); {
		most = counts.MostInFlight.Load()
	}
	isSheet := request.Method == http.MethodPut && strings.Contains(request.URL.Path, "/sheets/")
	if isSheet {
		sheets.Lock()
		if sheets.begun.IsZero() {
			sheets.begun, sheets.bytesBefore = time.Now(), counts.BytesIn.Load()
		}
		sheets.Unlock()
	}
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	if isSheet {
		sheets.Lock()
		sheets.ended, sheets.bytesAfter = time.Now(), counts.BytesIn.Load()
		sheets.Unlock()
	}
	due := time.Now().Add(*delay)
	switch {
	case p.isBurst():
		time.Sleep(time.Until(due))
		refuse(answer, http.StatusTooManyRequests, "TooManyRequests")
		return
	case *errorEach > 0 && uint64(number)%*errorEach == 0:
		time.Sleep(time.Until(due))
		refuse(answer, http.StatusServiceUnavailable, "SlowDown")
		return
	}
	passed := request.Clone(request.Context())
	passed.URL.Scheme, passed.URL.Host, passed.RequestURI = "http", p.upstream, ""
	passed.Body, passed.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if len(body) == 0 {
		passed.Body = http.NoBody
	}
	response, err := p.client.RoundTrip(passed)
	if err != nil {
		refuse(answer, http.StatusBadGateway, "BadGateway")
		return
	}
	defer response.Body.Close()
	time.Sleep(time.Until(due))
	for name, values := range response.Header {
		answer.Header()[name] = values
	}
	answer.WriteHeader(response.StatusCode)
	_, _ = io.Copy(answer, response.Body)
}

func answerCounts(answer http.ResponseWriter, _ *http.Request) {
	sheets.Lock()
	defer sheets.Unlock()
	_ = json.NewEncoder(answer).Encode(map[string]int64{
		"requests": counts.Requests.Load(), "refused": counts.Refused.Load(), "mostInFlight": counts.MostInFlight.Load(),
		"connections": counts.Connections.Load(), "open": counts.Open.Load(), "bytesIn": counts.BytesIn.Load(), "bytesOut": counts.BytesOut.Load(),
		"sheetsMs": sheets.ended.Sub(sheets.begun).Milliseconds(), "sheetsBytes": sheets.bytesAfter - sheets.bytesBefore,
	})
}

// limited lets so many connections be open at once, and closes further ones.
type limited struct{ net.Listener }

type counted struct {
	net.Conn
	release func()
}

func (c counted) Read(into []byte) (int, error) {
	n, err := c.Conn.Read(into)
	up.take(n)
	return n, err
}

func (c counted) Write(from []byte) (int, error) {
	down.take(len(from))
	return c.Conn.Write(from)
}

func (c counted) Close() error {
	c.release()
	return c.Conn.Close()
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		connection, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		counts.Connections.Add(1)
		if open := counts.Open.Add(1); *connections > 0 && open > int64(*connections) {
			counts.Refused.Add(1)
			counts.Open.Add(-1)
			connection.Close()
			continue
		}
		return counted{connection, sync.OnceFunc(func() { counts.Open.Add(-1) })}, nil
	}
}

func main() {
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: far [options] LISTEN UPSTREAM")
	}
	listener, err := net.Listen("tcp", flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
	server := &http.Server{Handler: &proxy{upstream: flag.Arg(1), client: transport, begun: time.Now()}, ErrorLog: log.New(io.Discard, "", 0)}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(control, http.HandlerFunc(answerCounts))) }()
	_, _ = os.Stdout.WriteString(listener.Addr().String() + " " + control.Addr().String() + "\n")
	log.Fatal(server.Serve(&limited{Listener: listener}))
}
