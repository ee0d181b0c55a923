package wrapper

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

// markerRoom is kept free at the end of a log for the marker that tells that it is full.
const markerRoom = 256

// fit tells how much of the batch, whole records from where the last write ended, the file has room for. What does not
// fit is lost: 0 means that nothing of the batch is left to write. The first loss is told by a marker at the file's end,
// and its extent, when there is room again, by another one.
func (l *logFile) fit(batch []byte) int {
	if l.cut > 0 {
		// Somebody may have cut the file short to get disk space back.
		if size, err := l.file.Size(); err == nil {
			l.size = size
		}
		if l.size+2*markerRoom > l.max {
			l.drop(len(batch))
			return 0
		}
		l.mark(appendLoss(nil, l.cut, "the log was full and was not rotated"))
		l.cut = 0
	}
	room := l.max - markerRoom - l.size
	if int64(len(batch)) <= room {
		return len(batch)
	}
	// After a write in the middle of a record this finds the same end again: size has grown as the batch has shrunk.
	fits := bytes.LastIndexByte(batch[:max(0, room)], '\n') + 1
	if fits == 0 {
		text := fmt.Sprintf("[virtlet: this log has reached its limit of %d bytes; what follows is lost until it is rotated]", l.max)
		l.mark(appendRecord(nil, 'F', []byte(text), time.Now()))
		l.drop(len(batch))
	}
	return fits
}

// mark writes a marker. One that the disk does not take is not worth a second attempt: the figures are in the status.
func (l *logFile) mark(record []byte) {
	n, err := l.file.Write(record)
	l.note(n, err)
}

// drop counts bytes that found no room.
func (l *logFile) drop(n int) {
	l.cut += int64(n)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.lost += int64(n)
	l.stats.fault = fmt.Sprintf("%s has reached its limit of %d bytes and is not rotated", l.path, l.max)
}

// appendLoss appends a marker that tells of lost records.
func appendLoss(dst []byte, lost int64, why string) []byte {
	text := "[virtlet: " + strconv.FormatInt(lost, 10) + " bytes of log lost: " + why + "]"
	return appendRecord(dst, 'F', []byte(text), time.Now())
}
