// resnext-lite-converter: an ONNX file to MindSpore Lite's MINDIR, with the converter in the libraries of the wheel.
// It takes the flags of converter_lite, the program of the tarballs, as far as they are needed here.

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "lite_api.h"

namespace {

constexpr const char* kUsage =
    "usage: resnext-lite-converter --fmk=ONNX --modelFile=FILE.onnx --outputFile=FILE --saveType=MINDIR\n"
    "         [--optimize=none|general|ascend_oriented[:310|:310P]] [--inputShape=NAME:N,N,N,N] [--configFile=FILE]\n"
    "\n"
    "FILE.mindir is written. Exit codes: 0 done, 1 the converter failed (its log says why), 2 wrong use.\n";

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

std::vector<char> chars(const std::string& text) { return {text.begin(), text.end()}; }

// The device that Lite 2.0 compiles for; it knows the chips 310 and 310P by name ("device is not in ...").
std::string device_of(const std::string& optimize) {
  static const std::map<std::string, std::string> kDevices = {
      {"none", ""},
      {"general", ""},
      {"ascend_oriented", "Ascend"},
      {"ascend_oriented:310", "Ascend310"},
      {"ascend_oriented:310P", "Ascend310P"},
  };
  const auto found = kDevices.find(optimize);
  if (found == kDevices.end())
    throw UsageError("--optimize must be none, general, ascend_oriented, ascend_oriented:310 or ascend_oriented:310P, "
                     "not '" + optimize + "'; converter_lite of a newer MindSpore Lite may know it");
  return found->second;
}

// NAME:N,N,... as converter_lite takes it.
std::map<std::vector<char>, std::vector<int64_t>> shape_of(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) throw UsageError("--inputShape must be NAME:N,N,..., not '" + text + "'");
  std::vector<int64_t> sizes;
  for (size_t at = colon + 1; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    int64_t size = 0;
    const auto [last, error] = std::from_chars(text.data() + at, text.data() + end, size);
    if (error != std::errc() || last != text.data() + end || size < 1)
      throw UsageError("a size in --inputShape must be an integer above 0: '" + text + "'");
    sizes.push_back(size);
    at = end + 1;
  }
  return {{chars(text.substr(0, colon)), sizes}};
}

int convert(int count, char** words) {
  std::map<std::string, std::string> flags = {{"fmk", ""},      {"modelFile", ""},  {"outputFile", ""}, {"saveType", ""},
                                              {"optimize", "general"}, {"inputShape", ""}, {"configFile", ""}};
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto equals = word.find('=');
    const auto flag = equals == std::string::npos || word.rfind("--", 0) != 0
                          ? flags.end()
                          : flags.find(word.substr(2, equals - 2));
    if (flag == flags.end()) throw UsageError("unknown flag '" + word + "'");
    flag->second = word.substr(equals + 1);
  }
  if (flags["fmk"] != "ONNX") throw UsageError("--fmk must be ONNX, not '" + flags["fmk"] + "'");
  if (flags["saveType"] != "MINDIR") throw UsageError("--saveType must be MINDIR, not '" + flags["saveType"] + "'");
  for (const char* needed : {"modelFile", "outputFile"})
    if (flags[needed].empty()) throw UsageError(std::string("--") + needed + " is missing");
  const std::string device = device_of(flags["optimize"]);

  mindspore::Converter converter(mindspore::converter::kFmkTypeOnnx, chars(flags["modelFile"]),
                                 chars(flags["outputFile"]), {});
  converter.SetSaveType(mindspore::kMindIR);
  converter.SetNoFusion(flags["optimize"] == "none");
  if (!device.empty()) converter.SetDevice(chars(device));
  if (!flags["inputShape"].empty()) converter.SetInputShape(shape_of(flags["inputShape"]));
  if (!flags["configFile"].empty()) converter.SetConfigFile(chars(flags["configFile"]));
  const mindspore::Status status = converter.Convert();
  if (status.IsOk()) return 0;
  std::fprintf(stderr, "Convert failed: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    return convert(count, words);
  } catch (const UsageError& error) {
    std::fprintf(stderr, "resnext-lite-converter: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {  // of the library
    std::fprintf(stderr, "resnext-lite-converter: %s\n", error.what());
    return 1;
  }
}
