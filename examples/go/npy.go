package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

var (
	magic    = []byte("\x93NUMPY")
	typeOf   = regexp.MustCompile(`'descr': *'([^']*)'`)
	shapeOf  = regexp.MustCompile(`'shape': *\(([^)]*)\)`)
	rowMajor = regexp.MustCompile(`'fortran_order': *False`)
)

// ReadNpy reads a file of numpy, of uint8 or float32, row-major, with at least one row.
func ReadNpy(path string) (Array, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return Array{}, err
	}
	if len(file) < 12 || !bytes.HasPrefix(file, magic) {
		return Array{}, fmt.Errorf("%s: is no .npy file", path)
	}
	begin := 10
	end := begin + int(binary.LittleEndian.Uint16(file[8:]))
	if file[6] > 1 {
		begin = 12
		end = begin + int(binary.LittleEndian.Uint32(file[8:]))
	}
	if end > len(file) {
		return Array{}, fmt.Errorf("%s: ends within its header", path)
	}
	header, data := string(file[begin:end]), file[end:]
	dtype, shape := typeOf.FindStringSubmatch(header), shapeOf.FindStringSubmatch(header)
	if dtype == nil || shape == nil {
		return Array{}, fmt.Errorf("%s: must be an array; the header is %s", path, header)
	}
	size, known := map[string]int64{"<f4": 4, "|u1": 1}[dtype[1]]
	if !known {
		return Array{}, fmt.Errorf("%s: must be of float32 or uint8; got %s", path, dtype[1])
	}
	if !rowMajor.MatchString(header) {
		return Array{}, fmt.Errorf("%s: must be row-major", path)
	}
	array := Array{}
	for _, word := range strings.FieldsFunc(shape[1], func(r rune) bool { return r == ',' || r == ' ' }) {
		dimension, err := strconv.ParseInt(word, 10, 32)
		if err != nil {
			return Array{}, fmt.Errorf("%s: has the shape (%s)", path, shape[1])
		}
		array.Shape = append(array.Shape, dimension)
		size *= dimension
	}
	if len(array.Shape) == 0 || size == 0 {
		return Array{}, fmt.Errorf("%s: must have at least one row; the shape is (%s)", path, shape[1])
	}
	if int64(len(data)) != size {
		return Array{}, fmt.Errorf("%s: must have %d bytes of data for its shape; got %d", path, size, len(data))
	}
	if dtype[1] == "|u1" {
		array.Pixels = data
	} else {
		array.Floats = floatsOf(data)
	}
	return array, nil
}

// WriteNpy writes float32.
func WriteNpy(path string, array Array) error {
	shape := joined(array.Shape, ", ")
	if len(array.Shape) == 1 {
		shape += "," // the header is Python
	}
	header := fmt.Sprintf("{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", shape)
	// The data begin at a multiple of 64 bytes.
	header += strings.Repeat(" ", 63-(len(header)+10)%64) + "\n"
	file := append([]byte{}, magic...)
	file = append(file, 1, 0, byte(len(header)), byte(len(header)>>8))
	file = append(file, header...)
	return os.WriteFile(path, append(file, bytesOf(array.Floats)...), 0o644)
}

func joined(shape []int64, separator string) string {
	words := make([]string, len(shape))
	for n, dimension := range shape {
		words[n] = strconv.FormatInt(dimension, 10)
	}
	return strings.Join(words, separator)
}
