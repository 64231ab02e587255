package attest

import "github.com/waxseal/waxseal/attestations"

// CheckInputs refuses a record of inputs that is over the limits, ill-formed,
// or says more than what it holds allows. Control calls it on what the engine
// says before it signs, a verifier on what it reads.
func CheckInputs(in *attestations.Inputs) error {
	return in.Check(attestations.InputLimits{
		Requests: MaxInputs,
		Refusals: MaxRefusals,
		Names:    MaxNames,
		Steps:    MaxInputSteps,
		URI:      MaxURI,
		Text:     MaxInputText,
	})
}
