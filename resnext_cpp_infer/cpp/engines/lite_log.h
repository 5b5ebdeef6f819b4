// MindSpore Lite writes pages of log to standard error while it opens a model: they are held back, and give the reason
// where that fails.
#pragma once

#include <string>

namespace resnext {

class HeldBackLog {
 public:
  // Holds back what is written to standard error while this lives. Nothing is held back where GLOG_v is set, Lite's
  // variable for the level of its log, or where the system cannot.
  HeldBackLog();
  ~HeldBackLog();
  HeldBackLog(const HeldBackLog&) = delete;
  HeldBackLog& operator=(const HeldBackLog&) = delete;

  // What the errors in it say, in one line; empty where there are none.
  std::string errors() const;

 private:
  int saved_ = -1, log_ = -1;
};

// What the errors in a log of MindSpore say: its last line of each kind, without where in its sources that was.
std::string errors_in(const std::string& log);

}  // namespace resnext
