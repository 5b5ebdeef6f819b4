#include "stop.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

#include "error.h"

namespace resnext {
namespace {

std::atomic<bool> requested{false};
// A byte is in it once a signal has come, so that no wait can miss one.
int wake[2] = {-1, -1};

// Writes and ends; whether anybody reads it does not matter.
[[noreturn]] void end_now(const char* text) {
  if (text != nullptr && write(STDERR_FILENO, text, std::strlen(text)) < 0) _exit(kInterrupted);
  _exit(kInterrupted);
}

void on_signal(int) {
  const int saved = errno;
  if (requested.exchange(true)) end_now(nullptr);
  const char byte = 1;
  if (write(wake[1], &byte, 1) < 0) end_now(nullptr);
  alarm(kGraceSeconds);
  errno = saved;
}

void on_alarm(int) { end_now("resnext-infer: stopped during a call that did not return\n"); }

void handle(int number, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART
  sigaction(number, &action, nullptr);
}

}  // namespace

void install_stop_handlers() {
  if (pipe(wake) != 0) throw Error(kData, std::string("cannot make a pipe: ") + std::strerror(errno));
  for (const int end : wake) fcntl(end, F_SETFD, FD_CLOEXEC);
  fcntl(wake[1], F_SETFL, O_NONBLOCK);
  handle(SIGALRM, on_alarm);
  handle(SIGINT, on_signal);
  handle(SIGTERM, on_signal);
  handle(SIGPIPE, SIG_IGN);
  sigset_t ours;  // whoever started this program may have blocked them
  sigemptyset(&ours);
  for (const int number : {SIGALRM, SIGINT, SIGTERM}) sigaddset(&ours, number);
  sigprocmask(SIG_UNBLOCK, &ours, nullptr);
}

const std::atomic<bool>& stop_requested() { return requested; }

void check_stop(const char* done) {
  if (requested) throw Error(kInterrupted, std::string("stopped ") + done);
}

void wait_readable(int file) {
  pollfd files[2] = {{file, POLLIN, 0}, {wake[0], POLLIN, 0}};
  while (true) {
    check_stop("while waiting for a frame");
    if (poll(files, 2, -1) > 0) {
      check_stop("while waiting for a frame");
      if (files[0].revents != 0) return;
    } else if (errno != EINTR) {
      throw Error(kData, std::string("cannot wait for standard input: ") + std::strerror(errno));
    }
  }
}

}  // namespace resnext
