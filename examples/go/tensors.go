package main

import (
	"fmt"
	"unsafe"

	pb "hourglass/autoencoder/v1"
)

// Array holds numbers in row-major order; the first dimension of Shape counts rows. One of Floats and Pixels is set.
type Array struct {
	Shape  []int64
	Floats []float32
	Pixels []byte // 0 to 255
}

// A tensor's data are the elements as they lie in the memory of a little-endian machine. Go's ports to others exist, so that
// the order is looked at once.
func init() {
	one := float32(1)
	if bytesOf([]float32{one})[3] != 0x3f {
		panic("tensors are little-endian, this machine is not")
	}
}

// bytesOf returns a view of the values: nothing is copied, and both change together.
func bytesOf(values []float32) []byte {
	if len(values) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), 4*len(values))
}

// floatsOf returns the bytes as numbers: a view where they lie on a multiple of four bytes, as those of a decoded message do,
// else a copy.
func floatsOf(data []byte) []float32 {
	if len(data) == 0 {
		return nil
	}
	if uintptr(unsafe.Pointer(&data[0]))%4 != 0 {
		values := make([]float32, len(data)/4)
		copy(bytesOf(values), data)
		return values
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&data[0])), len(data)/4)
}

// Rows returns the rows from begin up to end, as a view.
func (a Array) Rows(begin, end int64) Array {
	part := Array{Shape: append([]int64{end - begin}, a.Shape[1:]...)}
	if a.Pixels != nil {
		size := int64(len(a.Pixels)) / a.Shape[0]
		part.Pixels = a.Pixels[begin*size : end*size]
	} else {
		size := int64(len(a.Floats)) / a.Shape[0]
		part.Floats = a.Floats[begin*size : end*size]
	}
	return part
}

// Tensor returns a message with a view of the numbers, which must stay as they are until the call is answered.
func (a Array) Tensor() *pb.Tensor {
	if a.Pixels != nil {
		return &pb.Tensor{Dtype: pb.DataType_DATA_TYPE_UINT8, Shape: a.Shape, Data: a.Pixels}
	}
	return &pb.Tensor{Dtype: pb.DataType_DATA_TYPE_FLOAT32, Shape: a.Shape, Data: bytesOf(a.Floats)}
}

// FromTensor returns the numbers of a message of FLOAT32, which is what the service answers unless asked otherwise.
func FromTensor(tensor *pb.Tensor) (Array, error) {
	if tensor.GetDtype() != pb.DataType_DATA_TYPE_FLOAT32 {
		return Array{}, fmt.Errorf("tensor: must be of FLOAT32; got %v", tensor.GetDtype())
	}
	return Array{Shape: tensor.Shape, Floats: floatsOf(tensor.Data)}, nil
}
