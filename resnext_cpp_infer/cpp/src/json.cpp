#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "error.h"

namespace resnext {
namespace {

constexpr int kMaxDepth = 64;

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

[[noreturn]] void wrong_kind(const std::string& what, const char* wanted) {
  throw Error(kData, what + " must be " + wanted);
}

}  // namespace

size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char first = byte(i);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF   ? 2
                        : (first & 0xF0) == 0xE0         ? 3
                        : first >= 0xF0 && first <= 0xF4 ? 4
                                                         : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k)
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  const unsigned char second = byte(i + 1);
  if (first == 0xE0 && second < 0xA0) return 0;
  if (first == 0xED && second > 0x9F) return 0;
  if (first == 0xF0 && second < 0x90) return 0;
  if (first == 0xF4 && second > 0x8F) return 0;
  return length;
}

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    blanks();
    if (at_ != text_.size()) fail("extra text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* why) const {
    throw Error(kData, "not JSON: " + std::string(why) + " at byte " + std::to_string(at_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void blanks() {
    while (at_ < text_.size() && (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t')) ++at_;
  }

  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) fail("an unknown literal");
    at_ += expected.size();
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("nested too deeply");
    blanks();
    Json value;
    switch (peek()) {
      case '{':
        object(value, depth);
        break;
      case '[':
        array(value, depth);
        break;
      case '"':
        value.kind_ = Json::Kind::kString;
        value.string_ = string();
        break;
      case 't':
        word("true");
        value.kind_ = Json::Kind::kBool;
        value.bool_ = true;
        break;
      case 'f':
        word("false");
        value.kind_ = Json::Kind::kBool;
        break;
      case 'n':
        word("null");
        break;
      default:
        number(value);
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind_ = Json::Kind::kObject;
    ++at_;
    blanks();
    if (peek() == '}') {
      ++at_;
      return;
    }
    while (true) {
      blanks();
      if (peek() != '"') fail("a key is missing");
      std::string key = string();
      blanks();
      if (peek() != ':') fail("missing colon");
      ++at_;
      if (!value.object_.emplace(std::move(key), read(depth + 1)).second) fail("duplicate key");
      blanks();
      if (peek() == '}') {
        ++at_;
        return;
      }
      if (peek() != ',') fail("missing comma");
      ++at_;
    }
  }

  void array(Json& value, int depth) {
    value.kind_ = Json::Kind::kArray;
    ++at_;
    blanks();
    if (peek() == ']') {
      ++at_;
      return;
    }
    while (true) {
      value.array_.push_back(read(depth + 1));
      blanks();
      if (peek() == ']') {
        ++at_;
        return;
      }
      if (peek() != ',') fail("missing comma");
      ++at_;
    }
  }

  std::string string() {
    std::string out;
    ++at_;
    while (true) {
      if (at_ >= text_.size()) fail("unterminated string");
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return out;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') {
        ++at_;
        escape(out);
        continue;
      }
      const size_t length = utf8_length(text_, at_);
      if (length == 0) fail("invalid UTF-8");
      out.append(text_.substr(at_, length));
      at_ += length;
    }
  }

  void escape(std::string& out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        out += c;
        return;
      case 'b':
        out += '\b';
        return;
      case 'f':
        out += '\f';
        return;
      case 'n':
        out += '\n';
        return;
      case 'r':
        out += '\r';
        return;
      case 't':
        out += '\t';
        return;
      case 'u':
        break;
      default:
        fail("an unknown escape");
    }
    uint32_t code = hex4();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("unpaired surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC80 && code <= 0xDCFF) {
      out += static_cast<char>(code - 0xDC00);  // a byte of a file name, as Python writes it
      return;
    } else if (code >= 0xD800 && code <= 0xDFFF) {
      fail("unpaired surrogate");
    }
    append_utf8(out, code);
  }

  uint32_t hex4() {
    uint32_t code = 0;
    const std::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) fail("an escape needs four hex digits");
    at_ += 4;
    return code;
  }

  void number(Json& value) {
    const size_t start = at_;
    const auto digits = [&] {
      const size_t first = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      return at_ - first;
    };
    if (peek() == '-') ++at_;
    const bool zero = peek() == '0';
    const size_t whole = digits();
    if (whole == 0 || (zero && whole > 1)) fail(whole == 0 ? "no value" : "number with a leading 0");
    value.whole_ = peek() != '.' && peek() != 'e' && peek() != 'E';
    if (peek() == '.') {
      ++at_;
      if (digits() == 0) fail("number without digits after the point");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (digits() == 0) fail("exponent without digits");
    }
    value.kind_ = Json::Kind::kNumber;
    const auto [end, error] = std::from_chars(text_.data() + start, text_.data() + at_, value.number_);
    if (error == std::errc::result_out_of_range)  // too large, or too small: then it is nearly 0
      value.number_ = std::strtod(std::string(text_.substr(start, at_ - start)).c_str(), nullptr);
    if ((error != std::errc() && error != std::errc::result_out_of_range) || !std::isfinite(value.number_))
      fail("number out of range");
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).whole(); }

bool Json::boolean(const std::string& what) const {
  if (!is(Kind::kBool)) wrong_kind(what, "true or false");
  return bool_;
}

double Json::number(const std::string& what) const {
  if (!is(Kind::kNumber)) wrong_kind(what, "a number");
  return number_;
}

long Json::integer(const std::string& what, long low, long high) const {
  const double value = number(what);
  if (!whole_ || value < static_cast<double>(low) || value > static_cast<double>(high))
    throw Error(kData, what + " must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return static_cast<long>(value);
}

const std::string& Json::string(const std::string& what) const {
  if (!is(Kind::kString)) wrong_kind(what, "a string");
  return string_;
}

const std::vector<Json>& Json::array(const std::string& what) const {
  if (!is(Kind::kArray)) wrong_kind(what, "a list");
  return array_;
}

const std::map<std::string, Json>& Json::exactly(const std::string& what,
                                                 std::initializer_list<const char*> keys,
                                                 std::initializer_list<const char*> optional) const {
  if (!is(Kind::kObject)) wrong_kind(what, "an object");
  for (const char* key : keys) at(key);
  for (const auto& [key, value] : object_) {
    const auto same = [&known = key](const char* name) { return known == name; };
    if (std::none_of(keys.begin(), keys.end(), same) && std::none_of(optional.begin(), optional.end(), same))
      throw Error(kData, what + " '" + key + "' is unknown; the file is from a newer release");
  }
  return object_;
}

const Json* Json::find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &found->second;
}

const Json& Json::at(const std::string& key) const {
  const Json* found = find(key);
  if (found == nullptr) throw Error(kData, "'" + key + "' is missing");
  return *found;
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  char escape[8];
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t length = utf8_length(text, i);
    if (length == 0) {
      std::snprintf(escape, sizeof escape, "\\udc%02x", c);
      out += escape;
      ++i;
    } else if (c < 0x20 || c == 0x7F) {
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
      ++i;
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out.append(text.substr(i, length));
      i += length;
    }
  }
  return out + "\"";
}

std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : "null";
}

}  // namespace resnext
