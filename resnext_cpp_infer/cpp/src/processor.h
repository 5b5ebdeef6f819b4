// The instructions of the processor on which results in few bits depend, by the words of resnext_core/processor.py.
#pragma once

#include <string>

namespace resnext {

// The word for the processor that Linux describes in the text of /proc/cpuinfo; `machine` is that of uname.
std::string instruction_set(const std::string& cpuinfo, std::string machine);

// That of this processor.
std::string instruction_set();

// True where products of unsigned and signed bytes are added in 16 bits, so that large ones are cut off.
bool saturates(const std::string& instructions);

}  // namespace resnext
