package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"

	pb "hourglass/autoencoder/v1"
)

const rowSize = 28 * 28

func row() Array {
	array := Array{Shape: []int64{1, 28, 28}, Floats: make([]float32, rowSize)}
	for pixel := range array.Floats {
		array.Floats[pixel] = float32(pixel) / rowSize
	}
	return array
}

func encodeRequest(id uint64) *pb.StreamRequest {
	ask := &pb.EncodeRequest{Model: &pb.ModelSelector{Name: "mnist-conv"}, Rows: row().Tensor()}
	return &pb.StreamRequest{Id: id, Request: &pb.StreamRequest_Encode{Encode: ask}}
}

func connected(t *testing.T) pb.AutoencoderServiceClient {
	address := os.Getenv("HOURGLASS_ADDRESS")
	if address == "" {
		t.Skip("HOURGLASS_ADDRESS names no service")
	}
	connection, err := Connect(address, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return pb.NewAutoencoderServiceClient(connection)
}

func TestATensorIsAViewOfTheArray(t *testing.T) {
	array := row()
	tensor := array.Tensor()
	array.Floats[5] = 0.25
	back, err := FromTensor(tensor)
	if err != nil || &back.Floats[0] != &array.Floats[0] || !reflect.DeepEqual(back, array) {
		t.Fatalf("got %v, %v", back, err)
	}
}

func TestBytesThatAreNotAlignedAreCopied(t *testing.T) {
	aligned := bytesOf([]float32{0, 0.5, -2})
	copy(aligned[1:], aligned[4:])
	values := floatsOf(aligned[1:9])
	aligned[1]++
	if !reflect.DeepEqual(values, []float32{0.5, -2}) {
		t.Fatalf("got %v", values)
	}
}

func TestAFileComesBackAsItWasWritten(t *testing.T) {
	for _, array := range []Array{row(), {Shape: []int64{3}, Floats: []float32{1, 2, 3}}} {
		path := filepath.Join(t.TempDir(), "rows.npy")
		if err := WriteNpy(path, array); err != nil {
			t.Fatal(err)
		}
		if back, err := ReadNpy(path); err != nil || !reflect.DeepEqual(back, array) {
			t.Fatalf("got %v, %v", back, err)
		}
	}
}

func TestNoMoreThanInFlightRequestsAreUnanswered(t *testing.T) {
	stub := connected(t)
	const count = 1000
	for _, inFlight := range []int{1, 64} {
		asked, unanswered, most := uint64(0), int64(0), int64(0)
		next := func() *pb.StreamRequest {
			if asked == count {
				return nil
			}
			asked++
			if now := atomic.AddInt64(&unanswered, 1); now > most {
				most = now
			}
			return encodeRequest(asked)
		}
		seen := map[uint64]bool{}
		err := Stream(context.Background(), stub, inFlight, next, func(answer *pb.StreamResponse) error {
			atomic.AddInt64(&unanswered, -1)
			if answer.GetEncode() == nil || seen[answer.Id] {
				t.Errorf("got %v", answer)
			}
			seen[answer.Id] = true
			return nil
		})
		// One more is made before it waits for its turn, one is answered and not handed out yet.
		if err != nil || len(seen) != count || most > int64(inFlight)+2 {
			t.Fatalf("%v; %d answers; %d unanswered, of %d", err, len(seen), most, inFlight)
		}
	}
}

func TestWhoeverStopsReadingEndsTheStream(t *testing.T) {
	stub := connected(t)
	enough, read, id := errors.New("enough"), 0, uint64(0)
	next := func() *pb.StreamRequest {
		id++
		return encodeRequest(id)
	}
	err := Stream(context.Background(), stub, 8, next, func(*pb.StreamResponse) error {
		if read++; read == 100 {
			return enough
		}
		return nil
	})
	if err != enough || read != 100 {
		t.Fatalf("%v after %d", err, read)
	}
	answer, err := stub.Encode(context.Background(), encodeRequest(0).GetEncode())
	if err != nil || !reflect.DeepEqual(answer.Latents.Shape, []int64{1, 8, 4, 4}) {
		t.Fatalf("%v, %v", answer, err)
	}
}
