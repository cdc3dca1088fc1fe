package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// scanOne reads one operation that is all of text.
func scanOne(text string) (operation, error) {
	var o operation
	s := opScanner{b: []byte(text)}
	err := s.op(&o)
	if err == nil {
		err = s.end()
	}
	return o, err
}

func TestScanOp(t *testing.T) {
	for _, c := range []struct {
		text string
		want operation
	}{
		{`{"op":"put","key":"k","value":"v"}`, operation{kind: opPut, key: []byte("k"), value: []byte("v"), ifSeq: noSeq}},
		{" {\t\"value\" : \"\" ,\r\n\"key\":\"a\\/b\",\"op\":\"put\"} ", operation{kind: opPut, key: []byte("a/b"), value: []byte{}, ifSeq: noSeq}},
		{`{"op":"put","key_base64":"//4=","value_base64":"AAE=","content_type":"a/b","if_seq":0}`, operation{kind: opPut, key: []byte("\xff\xfe"), value: []byte("\x00\x01"), contentType: "a/b", ifSeq: 0}},
		{`{"op":"put","key":"k","value":"v","if_absent":true,"if_seq":null,"content_type":null}`, operation{kind: opPut, key: []byte("k"), value: []byte("v"), ifAbsent: true, ifSeq: noSeq}},
		{`{"op":"delete","key":"k","if_seq":18446744073709551614}`, operation{kind: opDelete, key: []byte("k"), ifSeq: noSeq - 1}},
		{`{"op":"\u0070ut","key":"\u043a\ud83d\ude00\b\f\n\r\t\"\\","value":"ключ"}`, operation{kind: opPut, key: []byte("к😀\b\f\n\r\t\"\\"), value: []byte("ключ"), ifSeq: noSeq}},
		{`{"op":"put","key":"k","value":"v","if_absent":false,"if_seq":7}`, operation{kind: opPut, key: []byte("k"), value: []byte("v"), ifSeq: 7}},
	} {
		o, err := scanOne(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if o.kind != c.want.kind || !bytes.Equal(o.key, c.want.key) || !bytes.Equal(o.value, c.want.value) || o.contentType != c.want.contentType ||
			o.ifAbsent != c.want.ifAbsent || o.ifSeq != c.want.ifSeq {
			t.Errorf("%s: got %+v, want %+v", c.text, o, c.want)
		}
	}
}

func TestScanOpRefuses(t *testing.T) {
	const good = `{"op":"put","key":"k","value":"v"`
	for text, want := range map[string]string{
		``:                                       "ends at byte 0",
		`null`:                                   "begins with {",
		`[]`:                                     "begins with {",
		`{}`:                                     `no "op"`,
		good:                                     "ends at byte",
		good + `}x`:                              "nothing more",
		good + `,}`:                              "a string for a name",
		good + `,"valeu":1}`:                     `unknown field "valeu"`,
		good + `,"Value":"v"}`:                   `unknown field "Value"`,
		good + `,"key":"k"}`:                     `"key" is given twice`,
		good + `,"value_base64":""}`:             `"value_base64" is given twice`,
		good + `,"if_absent":1}`:                 "true or false",
		good + `,"if_seq":-1}`:                   "whole number",
		good + `,"if_seq":01}`:                   "whole number",
		good + `,"if_seq":1.0}`:                  "whole number",
		good + `,"if_seq":1e3}`:                  "whole number",
		good + `,"if_seq":18446744073709551616}`: "whole number",
		good + `,"if_seq":18446744073709551615}`: "no entry has",
		good + `,"if_absent":true,"if_seq":1}`:   "contradict",
		good + `,"content_type":"` + strings.Repeat("x", 256) + `"}`:         "256 bytes",
		`{"op":"post","key":"k","value":"v"}`:                                `op is "post"`,
		`{"op":1,"key":"k","value":"v"}`:                                     "a string for op",
		`{"op":"put","value":"v"}`:                                           `no "key"`,
		`{"op":"put","key":"","value":"v"}`:                                  "key is empty",
		`{"op":"put","key":"k"}`:                                             `no "value"`,
		`{"op":"put","key":"k","value":null}`:                                `no "value"`,
		`{"op":"delete","key":"k","value":""}`:                               "neither value",
		`{"op":"delete","key":"k","if_absent":true}`:                         "never holds",
		`{"op":"put","key":"k","value_base64":"*"}`:                          "not base64",
		"{\"op\":\"put\",\"key\":\"k\",\"value\":\"\xff\"}":                  "not UTF-8",
		"{\"op\":\"put\",\"key\":\"k\",\"value\":\"\\n\xff\"}":               "not UTF-8",
		"{\"op\":\"put\",\"key\":\"k\",\"value\":\"\n\"}":                    "control character",
		`{"op":"put","key":"k","value":"\ud800"}`:                            "escape",
		`{"op":"put","key":"k","value":"\ud800\u0041"}`:                      "escape",
		`{"op":"put","key":"k","value":"\udc00\ud800"}`:                      "escape",
		`{"op":"put","key":"k","value":"\x"}`:                                "escape",
		`{"op":"put","key":"k","value":"\u12"}`:                              "escape",
		`{"op":"put","key":"` + strings.Repeat("k", 1025) + `","value":"v"}`: "1025 bytes",
	} {
		_, err := scanOne(text)
		var e *apiError
		if !errors.As(err, &e) || e.status != 400 || !strings.Contains(e.message, want) {
			t.Errorf("%s: %v, want 400 with %q", clip(text), err, want)
		}
	}
}

func TestScanOps(t *testing.T) {
	s := opScanner{b: []byte(` { "ops" : [ {"op":"put","key":"a","value":"1"} , {"op":"delete","key":"b"} ] } `)}
	ops, _, err := s.ops()
	if err != nil || len(ops) != 2 || string(ops[1].key) != "b" {
		t.Errorf("got %v, %v", ops, err)
	}
	for text, failed := range map[string]int{
		`{}`: -1, `{"ops":{}}`: -1, `{"ops":[]`: -1, `{"ops":[]}x`: -1, `{"ops":[],"x":1}`: -1, `{"op":[]}`: -1,
		`{"ops":[{"op":"put","key":"a","value":"1"} {}]}`:                                                      -1,
		`{"ops":[{"op":"put","key":"a","value":"1"},{}]}`:                                                      1,
		`{"ops":[` + strings.Repeat(`{"op":"delete","key":"a"},`, maxBatchOps) + `{"op":"delete","key":"a"}]}`: -1,
	} {
		s := opScanner{b: []byte(text)}
		if _, got, err := s.ops(); err == nil || got != failed {
			t.Errorf("%s: operation %d, %v; want %d and an error", clip(text), got, err, failed)
		}
	}
}

// FuzzScanOp holds the scanner to encoding/json: what it accepts, that accepts
// with the same meaning; what it refuses, that refuses too, unless the scanner
// is stricter on purpose.
func FuzzScanOp(f *testing.F) {
	for _, s := range []string{
		`{"op":"put","key":"k","value":"v"}`, `{"op":"delete","key_base64":"AA==","if_seq":1}`, `{"op":"put","key":"\ud83d\ude00","value":"\n","if_absent":true}`,
		`{"op":"put","key":"k","value_base64":"AA\n==","content_type":"x"}`, `{"op":null}`, `{"op":"put","key":"k","value":"\ud800x"}`, `{ } `,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := scanOne(text)
		var want struct {
			Op          string  `json:"op"`
			Key         *string `json:"key"`
			KeyBase64   []byte  `json:"key_base64"`
			Value       *string `json:"value"`
			ValueBase64 []byte  `json:"value_base64"`
			ContentType string  `json:"content_type"`
			IfAbsent    bool    `json:"if_absent"`
			IfSeq       *uint64 `json:"if_seq"`
		}
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		jsonErr := d.Decode(&want)
		if err != nil {
			// A plain operation is never refused.
			plain, _ := json.Marshal(map[string]any{"op": "put", "key": "k" + base64.StdEncoding.EncodeToString([]byte(text[:min(len(text), 99)])), "value": text})
			o, err := scanOne(string(plain))
			if err != nil || utf8.ValidString(text) && string(o.value) != text {
				t.Fatalf("%s: value %q, %v", plain, o.value, err)
			}
			return
		}
		if jsonErr != nil {
			t.Fatalf("%q: accepted, encoding/json says %v", text, jsonErr)
		}
		key, value := want.KeyBase64, want.ValueBase64
		if want.Key != nil {
			key = []byte(*want.Key)
		}
		if want.Value != nil {
			value = []byte(*want.Value)
		}
		seq := noSeq
		if want.IfSeq != nil {
			seq = *want.IfSeq
		}
		if got.kind.String() != want.Op || !bytes.Equal(got.key, key) || !bytes.Equal(got.value, value) || got.contentType != want.ContentType ||
			got.ifAbsent != want.IfAbsent || got.ifSeq != seq {
			t.Fatalf("%q: got %+v, encoding/json reads %+v", text, got, want)
		}
	})
}
