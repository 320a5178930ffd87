package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"sort"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "hourglass/autoencoder/v1"
)

// TLS names PEM files, each optional: whom to trust (else the machine's roots), and who we are for mutual TLS.
type TLS struct{ CA, Cert, Key string }

func (t TLS) config() (*tls.Config, error) {
	config := &tls.Config{}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: has no certificates in PEM", t.CA)
		}
	}
	if t.Cert != "" || t.Key != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

var local = regexp.MustCompile(`^(localhost|127(\.\d+){3}|\[::1\]):\d+$|^unix:`)

// Connect makes a connection; it is opened at the first call. With tls nil it is not encrypted.
func Connect(address string, encryption *TLS, token string) (*grpc.ClientConn, error) {
	if token != "" && encryption == nil && !local.MatchString(address) {
		return nil, fmt.Errorf("token: sent without TLS only to a loopback address or a unix socket, not to %s", address)
	}
	// Newer releases of grpc-go prefer insecure.NewCredentials, which Debian's has not.
	security := grpc.WithInsecure()
	if encryption != nil {
		config, err := encryption.config()
		if err != nil {
			return nil, err
		}
		security = grpc.WithTransportCredentials(credentials.NewTLS(config))
	}
	return grpc.Dial(address, security,
		// The size of an answer follows from the rows that were sent.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		// Servers take more than one ping in five minutes for a flood.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 330 * time.Second}),
	)
}

// WithToken returns a context whose calls carry the token; an empty one is none.
func WithToken(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// Stream sends what next returns until that is nil, and hands the answers to answered, in the order of completion. An answer
// may be an Error: of its request alone.
//
// Two things hold the sender back: the service, which reads no further than it keeps up with (Send blocks then), and
// inFlight, the most requests that are unanswered, so that this process does not pile up requests either. An answered that is
// slow holds back the service in turn. next runs in a goroutine of its own.
func Stream(
	ctx context.Context, stub pb.AutoencoderServiceClient, inFlight int,
	next func() *pb.StreamRequest, answered func(*pb.StreamResponse) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := stub.Stream(ctx)
	if err != nil {
		return err
	}
	places := make(chan struct{}, inFlight)
	go func() {
		for request := next(); request != nil; request = next() {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			// Recv has the reason where this fails.
			if stream.Send(request) != nil {
				return
			}
		}
		stream.CloseSend()
	}()
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		<-places
		if err := answered(response); err != nil {
			return err
		}
	}
}

// Describe says what the error of a call says, for people: status and text, then its details. Other errors it leaves alone.
func Describe(err error) string {
	if _, ours := status.FromError(err); !ours {
		return err.Error()
	}
	return describe(status.Convert(err))
}

// DescribeOnStream does the same for the error of one request on a stream.
func DescribeOnStream(err *pb.StreamError) string {
	return describe(status.FromProto(&spb.Status{Code: err.Code, Message: err.Message, Details: err.Details}))
}

func describe(status *status.Status) string {
	name := status.Code().String()
	if int(status.Code()) < len(statusNames) {
		name = statusNames[status.Code()]
	}
	lines := []string{name + ": " + status.Message()}
	for _, detail := range status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			pairs := []string{}
			for key, value := range detail.Metadata {
				pairs = append(pairs, fmt.Sprintf(", %s=%s", key, value))
			}
			sort.Strings(pairs)
			lines = append(lines, "  reason "+detail.Reason+strings.Join(pairs, ""))
		case *errdetails.RetryInfo:
			delay := time.Duration(detail.RetryDelay.Seconds)*time.Second + time.Duration(detail.RetryDelay.Nanos)
			lines = append(lines, fmt.Sprintf("  retry after %g s", delay.Seconds()))
		}
	}
	return strings.Join(lines, "\n")
}

// The statuses as the .proto files write them; grpc-go's own names are others (NotFound).
var statusNames = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}
