#include "mindir_file.h"

#include "error.h"
#include "protobuf.h"

namespace resnext {
namespace {

// Numbers of fields of ModelProto: mindspore/core/proto/mind_ir.proto.
constexpr uint64_t kProducer = 2, kModelVersion = 5, kGraph = 7, kIrVersion = 13;
constexpr const char* kMindSpore = "MindSpore";

}  // namespace

MindirFile read_mindir(const std::string& path) {
  const MappedFile mapped(path);
  MindirFile found;
  bool graph = false, producer = false;
  Fields fields(mapped.bytes());
  for (Field field; fields.next(field);) {
    if (field.number == kProducer) producer = field.bytes == kMindSpore;
    if (field.number == kModelVersion) found.writer = field.bytes;
    if (field.number == kGraph) graph = true;
    if (field.number == kIrVersion) found.ir_version = field.value;
  }
  if (producer && fields.broken()) throw Error(kData, path + " is a truncated or damaged MINDIR; export it again");
  if (!producer || !graph) throw Error(kData, path + " is not a MINDIR");
  return found;
}

}  // namespace resnext
