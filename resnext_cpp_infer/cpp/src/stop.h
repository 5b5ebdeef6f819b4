// SIGINT and SIGTERM: the first asks the program to end, the second ends it, and so does a call that does not come
// back within kGraceSeconds of the first.
#pragma once

#include <atomic>

namespace resnext {

constexpr unsigned kGraceSeconds = 8;

// Calls that wait are interrupted (EINTR), not begun again.
void install_stop_handlers();

// True once a signal has come.
const std::atomic<bool>& stop_requested();

// Error(kInterrupted) once a signal has come; `done` says in the message what was finished before.
void check_stop(const char* done);

// Waits until `file` can be read or is at its end; Error(kInterrupted) as soon as a signal comes.
void wait_readable(int file);

}  // namespace resnext
