#include "onnx_file.h"

#include <cstdint>
#include <string_view>

#include "protobuf.h"
#include "sha256.h"

namespace resnext {
namespace {

// Numbers of fields: onnx.proto.
constexpr uint64_t kGraph = 7, kMetadata = 14, kKey = 1, kValue = 2, kInitializer = 5, kDataType = 2;
constexpr uint64_t kFloat = 1;
constexpr const char* kManifestKey = "resnext";

// How many constants of a graph are no float32. A damaged byte may make one look so; a tool makes many.
size_t other_constants(std::string_view graph) {
  size_t count = 0;
  Fields fields(graph);
  for (Field field; fields.next(field);) {
    if (field.number != kInitializer) continue;
    Fields tensor(field.bytes);
    uint64_t type = kFloat;
    for (Field part; tensor.next(part);)
      if (part.number == kDataType) type = part.value;
    count += type == kFloat ? 0 : 1;
  }
  return count;
}

}  // namespace

OnnxFile read_onnx(const std::string& path) {
  const MappedFile mapped(path);
  OnnxFile found;
  Sha256 content;
  size_t others = 0;
  Fields fields(mapped.bytes());
  for (Field field; fields.next(field);) {
    if (field.number != kMetadata) content.update(field.whole);
    if (field.number == kGraph) others += other_constants(field.bytes);
    if (field.number != kMetadata) continue;
    std::string key, value;
    Fields entry(field.bytes);
    for (Field part; entry.next(part);) {
      if (part.number == kKey) key = part.bytes;
      if (part.number == kValue) value = part.bytes;
    }
    if (key == kManifestKey) found.manifest = value;
  }
  found.readable = !fields.broken() && !mapped.bytes().empty();
  found.converted = others > 1;
  found.content = "sha256:" + content.hex();
  return found;
}

}  // namespace resnext
