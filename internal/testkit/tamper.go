package testkit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Tamper does what somebody does who can write to the place where evidence is
// kept: in the OCI layout at dir, in every statement of the given predicate
// type, it replaces the first old by new, and puts the changed bundle there
// under its new digest. Every digest holds afterwards; only the signature tells.
func Tamper(dir, predicateType, old, new string) error {
	file := filepath.Join(dir, "index.json")
	var index map[string]any
	if err := readJSON(file, &index); err != nil {
		return err
	}
	changed := 0
	descriptors, _ := index["manifests"].([]any)
	for _, d := range descriptors {
		descriptor, _ := d.(map[string]any)
		forged, err := tamperManifest(dir, descriptor, predicateType, old, new)
		if err != nil {
			return fmt.Errorf("changing the evidence %v: %w", descriptor["digest"], err)
		}
		if forged {
			changed++
		}
	}
	if changed == 0 {
		return fmt.Errorf("no evidence of type %q with %q in it in the layout %q", predicateType, old, dir)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}

// tamperManifest changes the bundle that descriptor's manifest holds, and makes
// the descriptor point at the changed one. It leaves what is no evidence alone.
func tamperManifest(dir string, descriptor map[string]any, predicateType, old, new string) (bool, error) {
	var manifest map[string]any
	if err := readJSON(blobPath(dir, descriptor), &manifest); err != nil {
		return false, err
	}
	layers, _ := manifest["layers"].([]any)
	if manifest["subject"] == nil || len(layers) != 1 {
		return false, nil
	}
	layer, _ := layers[0].(map[string]any)
	var bundle map[string]any
	if err := readJSON(blobPath(dir, layer), &bundle); err != nil {
		return false, err
	}
	envelope, _ := bundle["dsseEnvelope"].(map[string]any)
	encoded, _ := envelope["payload"].(string)
	payload, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return false, err
	}
	text := string(payload)
	if !strings.Contains(text, predicateType) || !strings.Contains(text, old) {
		return false, nil
	}
	envelope["payload"] = base64.StdEncoding.EncodeToString([]byte(strings.Replace(text, old, new, 1)))
	if err := putBlob(dir, layer, bundle); err != nil {
		return false, err
	}
	return true, putBlob(dir, descriptor, manifest)
}

// putBlob stores value as a blob of the layout and points descriptor at it.
func putBlob(dir string, descriptor map[string]any, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	descriptor["digest"] = fmt.Sprintf("sha256:%x", sha256.Sum256(raw))
	descriptor["size"] = len(raw)
	return os.WriteFile(blobPath(dir, descriptor), raw, 0o644)
}

func blobPath(dir string, descriptor map[string]any) string {
	digest, _ := descriptor["digest"].(string)
	return filepath.Join(dir, "blobs", strings.Replace(digest, ":", "/", 1))
}

func readJSON(file string, into any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("reading %q: %w", file, err)
	}
	return nil
}
