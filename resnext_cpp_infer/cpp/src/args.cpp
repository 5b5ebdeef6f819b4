#include "args.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>
#include <vector>

#include "error.h"
#include "files.h"

namespace resnext {

const char* const kHelp = R"(usage: resnext-infer --model FILE --data PATH [flags]

Classify images with an artefact of resnext, at the speed of the device. Preprocessing and classes come from the
artefact's manifest (inside it, or FILE.json); no flag changes them.

  --model FILE         .onnx, .om, .mindir or .ms
  --data PATH          folder of class folders, folder of images, list of 'path label' lines, or an image
  --labels FILE        JSON {file: class} or a list, for images without class folders
  --output FILE        one line per image, sorted by path (default: standard output)
  --format F           jsonl or csv (default jsonl)
  --top K              classes per line (default 5)
  --summary FILE       JSON: counts, accuracy, latencies, images/s
  --logits FILE        all logits, .npy float32 (images, classes); NaN for images that cannot be read
  --pixels FILE        the network's input, .npy uint8 (images, size, size, 3)
  --modelzoo-layout DIR
                       also write result_Files/*.bin and time_Result like the ModelZoo

  --engine NAME        onnx, acl, mslite or null (default: from the model's ending)
  --engines DIR        folder of the engines' libraries (default: beside this program)
  --runtime FILE       library of the runtime, e.g. libonnxruntime.so (default: searched by the system)
  --device NAME        cpu, cuda, cann, ascend310, ascend310p, ascend910 (default cpu)
  --device-id N        number of the device (default 0)
  --precision NAME     one of the engine's precisions (default: the artefact's)
  --batch N            images per call (default: the artefact's, or 8)
  --threads N          threads of the engine (default: the engine's choice)
  --workers N          decoding threads (default: one per core)
  --warmup N           calls before timing starts (default 1)
  --self-check MODE    full: compare the file with its digest and compute its golden logits; digest: only the digest;
                       off: no check (default full)

  --stream             serve frames on standard input and output, see docs/cpp.md
  --print-manifest     print the artefact's manifest, e.g. for a model converted from it
  --list-engines       list the installed engines
  --quiet              no progress output
  --version, --help

Exit codes: 0 done, 2 wrong use, 3 data cannot be read or written (also some images), 4 engine or device not available,
75 stopped by a signal.
)";

namespace {

int integer(const std::string& flag, const std::string& text, int low, int high) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    throw Error(kUsage, flag + " must be an integer from " + std::to_string(low) + " to " + std::to_string(high) +
                            ", not '" + text + "'");
  return value;
}

// Edits (insert, remove, replace) between two words.
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

SelfCheck self_check(const std::string& text) {
  if (text == "full") return SelfCheck::kFull;
  if (text == "digest") return SelfCheck::kDigest;
  if (text == "off") return SelfCheck::kOff;
  throw Error(kUsage, "--self-check must be full, digest or off, not '" + text + "'");
}

// Flags that were renamed after 0.1: old to new. Old spellings are accepted; remove this with 0.3.
const std::map<std::string, std::string> kOldFlags = {{"--seed-layout", "--modelzoo-layout"}};

using Setter = std::function<void(const std::string&)>;

[[noreturn]] void unknown(const std::string& flag, const std::map<std::string, Setter>& values,
                          const std::map<std::string, bool*>& switches) {
  std::string nearest;
  size_t best = 4;
  const auto consider = [&](const std::string& known) {
    const size_t d = distance(flag, known);
    if (d < best) {
      best = d;
      nearest = known;
    }
  };
  for (const auto& [known, setter] : values) consider(known);
  for (const auto& [known, target] : switches) consider(known);
  throw Error(kUsage, "unknown flag '" + flag + "'" + (nearest.empty() ? "" : "; did you mean " + nearest + "?") +
                          " (see resnext-infer --help)");
}

}  // namespace

Args parse_args(int argc, char** argv) {
  Args args;
  const auto text = [](std::string& target) { return [&target](const std::string& value) { target = value; }; };
  const auto path = [](std::string& target) {
    return [&target](const std::string& value) {
      refuse_address(value);
      target = value;
    };
  };
  const auto number = [](int& target, const char* flag, int low, int high) {
    return [&target, flag, low, high](const std::string& value) { target = integer(flag, value, low, high); };
  };
  const std::map<std::string, Setter> values = {
      {"--model", path(args.engine.model)},
      {"--data", path(args.data)},
      {"--labels", path(args.labels)},
      {"--output", path(args.output)},
      {"--format", text(args.format)},
      {"--summary", path(args.summary)},
      {"--logits", path(args.logits)},
      {"--pixels", path(args.pixels)},
      {"--modelzoo-layout", path(args.modelzoo_layout)},
      {"--engine", text(args.engine.name)},
      {"--engines", path(args.engine.folder)},
      {"--runtime", path(args.engine.runtime)},
      {"--device", text(args.engine.device)},
      {"--precision", text(args.engine.precision)},
      {"--device-id", number(args.engine.device_id, "--device-id", 0, 1023)},
      {"--threads", number(args.engine.threads, "--threads", 1, 1024)},
      {"--batch", number(args.batch, "--batch", 1, 65536)},
      {"--workers", number(args.workers, "--workers", 1, 1024)},
      {"--top", number(args.top, "--top", 1, 1000000)},
      {"--self-check", [&args](const std::string& value) { args.engine.self_check = self_check(value); }},
      {"--warmup", number(args.warmup, "--warmup", 0, 1000)},
  };
  const std::map<std::string, bool*> switches = {
      {"--stream", &args.stream},
      {"--help", &args.help},
      {"-h", &args.help},
      {"--version", &args.version},
      {"--quiet", &args.quiet},
      {"--list-engines", &args.list_engines},
      {"--print-manifest", &args.print_manifest},
  };
  for (int i = 1; i < argc; ++i) {
    std::string flag = argv[i], value;
    const size_t equals = flag.find('=');
    const bool given = equals != std::string::npos && flag.rfind("--", 0) == 0;
    if (given) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    }
    if (const auto old = kOldFlags.find(flag); old != kOldFlags.end()) flag = old->second;
    if (const auto found = switches.find(flag); found != switches.end() && !given) {
      *found->second = true;
      continue;
    }
    const auto setter = values.find(flag);
    if (setter == values.end()) unknown(flag, values, switches);
    if (!given) {
      if (++i >= argc) throw Error(kUsage, flag + " needs a value (see resnext-infer --help)");
      value = argv[i];
    }
    setter->second(value);
  }
  if (args.help || args.version || args.list_engines) return args;
  if (args.format != "jsonl" && args.format != "csv")
    throw Error(kUsage, "--format must be jsonl or csv, not '" + args.format + "'");
  if (args.engine.model.empty()) throw Error(kUsage, "--model is missing");
  if (args.print_manifest) return args;
  if (args.stream != args.data.empty())
    throw Error(kUsage,
                args.stream ? "--stream takes its images from standard input, not from --data" : "--data is missing");
  return args;
}

}  // namespace resnext
