// JSON: a strict reader (RFC 8259) with bounds on depth, and the few pieces of a writer that results need.
#pragma once

#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace resnext {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  // Reads one value and nothing after it; Error(kData) with the offset of what is wrong.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }

  // True for a number without a point and an exponent.
  bool whole() const { return whole_; }

  // The value as its kind; Error(kData) naming `what` when it is of another.
  bool boolean(const std::string& what) const;
  double number(const std::string& what) const;
  long integer(const std::string& what, long low, long high) const;
  const std::string& string(const std::string& what) const;
  const std::vector<Json>& array(const std::string& what) const;

  // A member of an object; Error(kData) when it is none, or lacks it.
  const Json& at(const std::string& key) const;
  // The same, nullptr where it is not there.
  const Json* find(const std::string& key) const;
  const std::map<std::string, Json>& members() const { return object_; }
  // The members of an object that has `keys`, perhaps some of `optional`, and no others; Error(kData) naming `what`
  // otherwise.
  const std::map<std::string, Json>& exactly(const std::string& what, std::initializer_list<const char*> keys,
                                             std::initializer_list<const char*> optional = {}) const;

 private:
  friend class JsonParser;
  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  double number_ = 0;
  bool whole_ = false;
  std::string string_;
  std::vector<Json> array_;
  std::map<std::string, Json> object_;
};

// Length of the UTF-8 sequence at `text[i]`, 0 where there is none (overlong forms and surrogates are none).
size_t utf8_length(std::string_view text, size_t i);
// A string as JSON, with its quotes; bytes that are no UTF-8 become lone surrogates, as Python's surrogateescape does.
std::string json_string(std::string_view text);
// True where `text` is UTF-8.
bool is_utf8(std::string_view text);
// A number as JSON: the shortest that reads back the same, null where it is not finite.
std::string json_number(double value);

}  // namespace resnext
