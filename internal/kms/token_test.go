//go:build cgo

package kms

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"testing"
)

// A token gives a point in an OCTET STRING or bare, and one bare point in 256
// looks like such a string.
func TestPoints(t *testing.T) {
	curves := []struct {
		curve elliptic.Curve
		oid   asn1.ObjectIdentifier
		// length is what the byte after the first is in an OCTET STRING.
		length byte
	}{
		{elliptic.P256(), asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, 63},
		{elliptic.P384(), asn1.ObjectIdentifier{1, 3, 132, 0, 34}, 95},
		{elliptic.P521(), asn1.ObjectIdentifier{1, 3, 132, 0, 35}, 0},
	}
	for _, c := range curves {
		params, err := asn1.Marshal(c.oid)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 << 14 {
			key, err := ecdsa.GenerateKey(c.curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			point, err := key.PublicKey.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if point[1] != c.length {
				continue
			}
			wrapped, err := asn1.Marshal(point)
			if err != nil {
				t.Fatal(err)
			}
			for how, is := range map[string][]byte{"bare": point, "wrapped": wrapped} {
				if pub, err := ecKey(params, is); err != nil || !key.PublicKey.Equal(pub) {
					t.Errorf("%s, %s: %v", c.curve.Params().Name, how, err)
				}
			}
			break
		}
	}
}
