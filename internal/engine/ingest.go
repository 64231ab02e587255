package engine

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// dropPartial gives up what engines before this one did not load to the end.
// Whoever loads a blob goes on behind what is there, and what a client gives from
// an OCI layout can be read from its beginning only: a build that was interrupted
// at its base image would make the next one fail.
func dropPartial(ctx context.Context, s content.IngestManager) error {
	left, err := s.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, l := range left {
		if err := s.Abort(ctx, l.Ref); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// forgetful is a content store that keeps nothing of a download whose bytes
// are not the ones that were asked for. The local store keeps them to go on
// from there the next time, which then fails for ever: one wrong answer of a
// registry would spoil the cache.
type forgetful struct{ content.Store }

func (s forgetful) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &forgetfulWriter{Writer: w, store: s.Store, ref: o.Ref}, nil
}

type forgetfulWriter struct {
	content.Writer
	store content.Store
	ref   string
}

// Commit gives up the download where it is complete and wrong.
func (w *forgetfulWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	if abort := w.store.Abort(context.WithoutCancel(ctx), w.ref); abort != nil && !errdefs.IsNotFound(abort) {
		return errors.Join(err, abort)
	}
	return err
}
