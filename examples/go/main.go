// A client of Hourglass on the command line; -help explains it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	pb "hourglass/autoencoder/v1"
)

const help = `usage: hourglass-go COMMAND [FLAGS] [IN.npy OUT.npy]

  models                    the models that are ready
  encode IN.npy OUT.npy     rows to latents
  denoise IN.npy OUT.npy    corrupted rows to clean rows; prints how far each moved
  interpolate IN.npy OUT.npy
                            the path from each row to the next, through the latent space
  stream IN.npy OUT.npy     encode, over one stream with a message a row

IN.npy has uint8 (0 to 255) or float32 (0 to 1), the first dimension counts rows; OUT.npy gets float32. Flags come first.

`

// What the flags say.
type options struct {
	model                                          *pb.ModelSelector
	address, name, ca, cert, key, token, tokenFile string
	tls                                            bool
	timeout                                        float64 // seconds
	steps, inFlight                                uint
}

func (o options) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Duration(o.timeout*float64(time.Second)))
}

func parse(command string, words []string) (options, []string) {
	o := options{}
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), help)
		flags.PrintDefaults()
	}
	address := os.Getenv("HOURGLASS_ADDRESS")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	name := "mnist-conv"
	if command == "denoise" {
		name = "mnist-denoising-conv"
	}
	flags.StringVar(&o.name, "model", name, "which model, with /VERSION or /LABEL for another than the latest")
	flags.StringVar(&o.address, "address", address, "the service, `HOST:PORT`; HOURGLASS_ADDRESS says it too")
	flags.BoolVar(&o.tls, "tls", false, "encrypt, and trust the roots of this machine")
	flags.StringVar(&o.ca, "tls-ca", "", "encrypt, and trust the roots in this `file` (PEM)")
	flags.StringVar(&o.cert, "tls-cert", "", "who we are, for mutual TLS (PEM `file`)")
	flags.StringVar(&o.key, "tls-key", "", "its key (PEM `file`)")
	flags.StringVar(&o.tokenFile, "token-file", "", "a `file` with a bearer token (default HOURGLASS_TOKEN, else none)")
	flags.Float64Var(&o.timeout, "timeout", 30, "`seconds` after which a call, or a message of a stream, is given up")
	flags.UintVar(&o.steps, "steps", 9, "interpolate: points of each path, both ends included")
	flags.UintVar(&o.inFlight, "in-flight", 64, "stream: the most messages that are unanswered, at least 1")
	flags.Parse(words)
	if o.inFlight < 1 || !(o.timeout > 0) {
		fmt.Fprintln(os.Stderr, "-in-flight and -timeout: must be more than 0")
		os.Exit(2)
	}
	name, version, _ := strings.Cut(o.name, "/")
	o.model = &pb.ModelSelector{Name: name, Version: version}
	return o, flags.Args()
}

type command func(context.Context, pb.AutoencoderServiceClient, options, Array) (Array, error)

var commands = map[string]command{"encode": encode, "denoise": denoise, "interpolate": interpolate, "stream": stream}

func main() {
	name, words := "", os.Args[1:]
	if len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		name, words = words[0], words[1:]
	}
	o, files := parse(name, words)
	run, known := commands[name]
	if !(known && len(files) == 2) && !(name == "models" && len(files) == 0) {
		fmt.Fprint(os.Stderr, help)
		os.Exit(2)
	}
	if err := call(o, run, files); err != nil {
		fmt.Fprintln(os.Stderr, Describe(err))
		os.Exit(1)
	}
}

func call(o options, run command, files []string) error {
	token := os.Getenv("HOURGLASS_TOKEN")
	if o.tokenFile != "" {
		text, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(text))
	}
	var encryption *TLS
	if o.tls || o.ca != "" || o.cert != "" || o.key != "" {
		encryption = &TLS{CA: o.ca, Cert: o.cert, Key: o.key}
	}
	connection, err := Connect(o.address, encryption, token)
	if err != nil {
		return err
	}
	defer connection.Close()
	stub := pb.NewAutoencoderServiceClient(connection)
	ctx := WithToken(context.Background(), token)
	if run == nil {
		return models(ctx, stub, o)
	}
	rows, err := ReadNpy(files[0])
	if err != nil {
		return err
	}
	result, err := run(ctx, stub, o, rows)
	if err != nil {
		return err
	}
	if err := WriteNpy(files[1], result); err != nil {
		return err
	}
	fmt.Printf("%s: %s float32\n", files[1], joined(result.Shape, "x"))
	return nil
}

func models(ctx context.Context, stub pb.AutoencoderServiceClient, o options) error {
	ctx, cancel := o.deadline(ctx)
	defer cancel()
	answer, err := stub.ListModels(ctx, &pb.ListModelsRequest{})
	if err != nil {
		return err
	}
	for _, model := range answer.Models {
		operations := []string{}
		for _, operation := range model.Operations {
			operations = append(operations, strings.ToLower(strings.TrimPrefix(operation.String(), "OPERATION_")))
		}
		fmt.Printf("%s/%d  %s -> %s  %s\n", model.Name, model.Version, joined(model.Input.RowShape, "x"),
			joined(model.Latent.RowShape, "x"), strings.Join(operations, ","))
	}
	return nil
}

func encode(ctx context.Context, stub pb.AutoencoderServiceClient, o options, rows Array) (Array, error) {
	ctx, cancel := o.deadline(ctx)
	defer cancel()
	answer, err := stub.Encode(ctx, &pb.EncodeRequest{Model: o.model, Rows: rows.Tensor()})
	if err != nil {
		return Array{}, err
	}
	return FromTensor(answer.Latents)
}

func denoise(ctx context.Context, stub pb.AutoencoderServiceClient, o options, rows Array) (Array, error) {
	ctx, cancel := o.deadline(ctx)
	defer cancel()
	answer, err := stub.Denoise(ctx, &pb.DenoiseRequest{Model: o.model, Rows: rows.Tensor()})
	if err != nil {
		return Array{}, err
	}
	for row, distance := range answer.Distances {
		fmt.Printf("row %d moved by %.4f\n", row, distance)
	}
	return FromTensor(answer.Rows)
}

// [rows - 1, steps, ...row shape]: a path for each pair of neighbours.
func interpolate(ctx context.Context, stub pb.AutoencoderServiceClient, o options, rows Array) (Array, error) {
	count := rows.Shape[0]
	if count < 2 {
		return Array{}, fmt.Errorf("interpolate: needs at least two rows; got %d", count)
	}
	ctx, cancel := o.deadline(ctx)
	defer cancel()
	ends := &pb.TensorPair{Start: rows.Rows(0, count-1).Tensor(), End: rows.Rows(1, count).Tensor()}
	answer, err := stub.Interpolate(ctx, &pb.InterpolateRequest{
		Model:  o.model,
		Ends:   &pb.InterpolateRequest_Rows{Rows: ends},
		Points: &pb.InterpolateRequest_Steps{Steps: uint32(o.steps)},
	})
	if err != nil {
		return Array{}, err
	}
	return FromTensor(answer.Rows)
}

func stream(ctx context.Context, stub pb.AutoencoderServiceClient, o options, rows Array) (Array, error) {
	count, row := rows.Shape[0], int64(-1)
	next := func() *pb.StreamRequest {
		if row++; row == count {
			return nil
		}
		ask := &pb.EncodeRequest{Model: o.model, Rows: rows.Rows(row, row+1).Tensor()}
		return &pb.StreamRequest{
			Id:             uint64(row),
			TimeoutSeconds: o.timeout, // of each request: a stream may live for days
			Request:        &pb.StreamRequest_Encode{Encode: ask},
		}
	}
	latents, encoded := Array{}, int64(0)
	err := Stream(ctx, stub, int(o.inFlight), next, func(answer *pb.StreamResponse) error {
		if wrong := answer.GetError(); wrong != nil {
			fmt.Fprintf(os.Stderr, "row %d: %s\n", answer.Id, DescribeOnStream(wrong))
			return nil
		}
		one, err := FromTensor(answer.GetEncode().GetLatents())
		if err != nil {
			return err
		}
		if latents.Shape == nil {
			latents.Shape = append([]int64{count}, one.Shape[1:]...)
			latents.Floats = make([]float32, int(count)*len(one.Floats))
		}
		copy(latents.Floats[int(answer.Id)*len(one.Floats):], one.Floats)
		encoded++
		return nil
	})
	if err == nil && encoded < count {
		err = fmt.Errorf("%d of %d rows have no latent", count-encoded, count)
	}
	return latents, err
}
