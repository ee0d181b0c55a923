package control

// Stage is what a pull or import is busy with.
type Stage string

// The stages, in order; a pull need not go through all, and goes back when an attempt fails.
const (
	Queued      Stage = "queued"
	Resolving   Stage = "resolving"
	Downloading Stage = "downloading"
	Unpacking   Stage = "unpacking"
	Verifying   Stage = "verifying"
	Storing     Stage = "storing"
	Done        Stage = "done"
	Failed      Stage = "failed"
)

// Progress is the state of one pull or import.
type Progress struct {
	// Image is the canonical name.
	Image string
	Stage Stage
	// Bytes have come, of Total, which is 0 or less when it is unknown; Resumed of them were there from an earlier attempt.
	Bytes, Total, Resumed int64
	// Rate is in bytes a second.
	Rate    float64
	Attempt int
	// Fault is what ended the last attempt that failed.
	Fault string
	// ID of the image that came of it.
	ID string
}

// Ended tells whether nothing more will come.
func (p Progress) Ended() bool { return p.Stage == Done || p.Stage == Failed }
