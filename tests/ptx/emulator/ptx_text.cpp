// PTX parser: words -> statements. Scopes in braces get their own names ("%p" of an inline asm block becomes "%p#7").
#include "ptx_text.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace showo::ptx {
namespace {

struct Token {
  enum Kind { kWord, kNumber, kPunctuation, kString, kEnd } kind = kEnd;
  std::string text;
  int line = 0;
};

[[noreturn]] void fail(int line, const std::string& what) {
  throw std::runtime_error("ptx line " + std::to_string(line) + ": " + what);
}

bool word_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '.' || c == '%';
}

std::vector<Token> tokenize(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  size_t i = 0;
  const size_t n = text.size();
  while (i < n && text[i] != '\0') {
    const char c = text[i];
    if (c == '\n') {
      ++line, ++i;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      ++i;
    } else if (c == '/' && i + 1 < n && text[i + 1] == '/') {
      while (i < n && text[i] != '\n') ++i;
    } else if (c == '/' && i + 1 < n && text[i + 1] == '*') {
      for (i += 2; i + 1 < n && !(text[i] == '*' && text[i + 1] == '/'); ++i) line += text[i] == '\n';
      i += 2;
    } else if (c == '"') {
      const size_t end = text.find('"', i + 1);
      if (end == std::string::npos) fail(line, "unterminated string");
      tokens.push_back({Token::kString, text.substr(i + 1, end - i - 1), line});
      i = end + 1;
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      size_t end = i;
      while (end < n && std::isalnum(static_cast<unsigned char>(text[end]))) ++end;
      tokens.push_back({Token::kNumber, text.substr(i, end - i), line});
      i = end;
    } else if (word_char(c)) {
      size_t end = i;  // "::" belongs to a word (ld.global.L2::128B), ":" ends a label
      while (end < n && (word_char(text[end]) || (text[end] == ':' && end + 2 < n && text[end + 1] == ':'))) {
        end += text[end] == ':' ? 2 : 1;
      }
      tokens.push_back({Token::kWord, text.substr(i, end - i), line});
      i = end;
    } else {
      tokens.push_back({Token::kPunctuation, std::string(1, c), line});
      ++i;
    }
  }
  tokens.push_back({Token::kEnd, "", line});
  return tokens;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : tokens_(tokenize(text)) {}

  TextModule parse() {
    while (peek().kind != Token::kEnd) module_item();
    return std::move(module_);
  }

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  TextModule module_;
  TextFunction* function_ = nullptr;
  SourceLine source_;
  // Names declared in each open brace scope -> the unique name; labels are renamed after the body is read.
  std::vector<std::unordered_map<std::string, std::string>> scopes_;
  std::vector<int> scope_path_;
  std::vector<std::vector<int>> paths_;  // scope path of every instruction, to resolve labels
  int scope_count_ = 0;

  const Token& peek(int ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  bool is(const char* text, int ahead = 0) const {
    return peek(ahead).kind != Token::kString && peek(ahead).text == text;
  }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool accept(const char* text) { return is(text) ? (take(), true) : false; }
  void expect(const char* text) {
    if (!accept(text)) fail(peek().line, std::string("expected '") + text + "', got '" + peek().text + "'");
  }
  std::string word() {
    if (peek().kind != Token::kWord) fail(peek().line, "expected a name, got '" + peek().text + "'");
    return take().text;
  }
  int64_t integer() {
    const bool negative = accept("-");
    if (peek().kind != Token::kNumber) fail(peek().line, "expected a number, got '" + peek().text + "'");
    const auto value = static_cast<int64_t>(std::strtoull(take().text.c_str(), nullptr, 0));
    return negative ? -value : value;
  }
  void skip_past(const char* text) {
    while (peek().kind != Token::kEnd && !accept(text)) take();
  }

  void module_item() {
    const Token token = peek();
    if (token.kind != Token::kWord) fail(token.line, "unexpected '" + token.text + "'");
    if (token.text == ".version" || token.text == ".address_size") {
      take(), take();
      if (peek().kind == Token::kWord && peek().text[0] == '.' && std::isdigit(peek().text[1])) take();  // "9" ".0"
    } else if (token.text == ".target") {
      take();
      module_.target = word();
      while (accept(",")) take();
    } else if (token.text == ".file") {
      take();
      const int index = static_cast<int>(integer());
      module_.files[index] = take().text;
      while (accept(",")) take();
    } else if (token.text == ".section") {
      skip_past("{");
      for (int depth = 1; depth > 0 && peek().kind != Token::kEnd;) {
        const Token inner = take();
        depth += inner.text == "{" ? 1 : inner.text == "}" ? -1 : 0;
      }
    } else if (token.text == ".pragma" || token.text == ".alias") {
      skip_past(";");
    } else {
      bool is_extern = false;
      while (is(".visible") || is(".extern") || is(".weak") || is(".common")) is_extern |= take().text == ".extern";
      if (is(".entry") || is(".func")) {
        function();
      } else {
        variables(module_.variables, is_extern);
      }
    }
  }

  static Space space_of(const std::string& directive) {
    if (directive == ".global") return Space::kGlobal;
    if (directive == ".const") return Space::kConst;
    if (directive == ".shared") return Space::kShared;
    if (directive == ".local") return Space::kLocal;
    if (directive == ".param") return Space::kParam;
    return Space::kRegister;
  }

  // One declarator list: ".shared .align 4 .b8 name[64], other[8]". The caller takes the ';', ',' or ')'.
  TextVariable declarator(bool is_extern) {
    TextVariable v;
    v.is_extern = is_extern;
    const Token first = peek();
    v.space = space_of(word());
    if (v.space == Space::kRegister) fail(first.line, "unknown directive '" + first.text + "'");
    std::string type;
    while (peek().kind == Token::kWord && peek().text[0] == '.') {
      const std::string d = word();
      if (d == ".align") {
        v.alignment = integer();
      } else if (d == ".ptr") {
        if (peek().kind == Token::kWord && space_of(peek().text) != Space::kRegister) take();
      } else {
        type = d.substr(1);
      }
    }
    v.element_bytes = type_bytes(type);
    v.alignment = std::max(v.alignment, v.element_bytes);
    v.name = word();
    int64_t count = 1;
    while (accept("[")) {
      count = is("]") ? 0 : count * integer();
      expect("]");
    }
    v.bytes = count * v.element_bytes;
    if (accept("=")) initialiser(v);
    return v;
  }

  void initialiser(TextVariable& v) {
    int64_t offset = 0;
    int depth = 0;
    v.initial.assign(v.bytes, 0);
    do {
      if (accept("{")) {
        ++depth;
      } else if (accept("}")) {
        --depth;
      } else if (accept(",")) {
        continue;
      } else if (peek().kind == Token::kWord) {
        std::string symbol = word();
        if (symbol == "generic" && accept("(")) symbol = word(), expect(")");
        if (accept("+")) fail(peek().line, "address arithmetic in an initialiser is not supported");
        v.pointers.emplace_back(offset, symbol);
        offset += v.element_bytes;
      } else {
        const TextOperand value = number();
        if (offset + v.element_bytes <= v.bytes) std::memcpy(&v.initial[offset], &value.value, v.element_bytes);
        offset += v.element_bytes;
      }
    } while (depth > 0);
  }

  void variables(std::vector<TextVariable>& into, bool is_extern) {
    TextVariable v = declarator(is_extern);
    into.push_back(v);
    while (accept(",")) {
      v.name = word();
      into.push_back(v);
    }
    expect(";");
  }

  std::vector<TextVariable> parameter_list() {
    std::vector<TextVariable> list;
    expect("(");
    while (!accept(")")) {
      list.push_back(declarator(false));
      accept(",");
    }
    return list;
  }

  void function() {
    module_.functions.emplace_back();
    TextFunction& f = module_.functions.back();
    function_ = &f;
    f.line = peek().line;
    f.is_entry = take().text == ".entry";
    if (is("(")) f.returns = parameter_list();
    f.name = word();
    if (is("(")) f.params = parameter_list();
    while (!is("{") && !is(";")) {
      const std::string directive = word();
      if (directive == ".maxntid" || directive == ".reqntid") {
        f.max_threads = static_cast<int>(integer());
        while (accept(",")) f.max_threads *= static_cast<int>(integer());
      } else if (directive == ".minnctapersm" || directive == ".maxnreg") {
        integer();
      } else if (directive != ".noreturn") {
        fail(peek().line, "unknown function directive '" + directive + "'");
      }
    }
    if (accept(";")) return;
    f.has_body = true;
    paths_.clear();
    scope_count_ = 0;
    scopes_.clear();
    scope_path_.clear();
    body();
    resolve_labels(f);
    function_ = nullptr;
  }

  void body() {
    expect("{");
    scopes_.emplace_back();
    scope_path_.push_back(scope_count_++);
    while (!accept("}")) {
      if (is("{")) {
        body();
      } else {
        statement();
      }
    }
    scopes_.pop_back();
    scope_path_.pop_back();
  }

  std::string unique(const std::string& name) {
    return scope_path_.size() == 1 ? name : name + "#" + std::to_string(scope_path_.back());
  }

  std::string resolve(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return found->second;
    }
    return name;
  }

  std::string declare(const std::string& name) { return scopes_.back()[name] = unique(name); }

  void statement() {
    const Token token = peek();
    if (token.text == ".loc") {
      take();
      source_ = {static_cast<int>(integer()), static_cast<int>(integer())};
      integer();
      while (accept(",")) {  // function_name $L__info_string0, inlined_at 1 10 3
        if (word() == "inlined_at") {
          integer(), integer(), integer();
        } else {
          take();
          if (accept("+")) integer();
        }
      }
    } else if (token.text == ".reg") {
      registers();
    } else if (token.text == ".pragma") {
      skip_past(";");
    } else if (token.kind == Token::kWord && token.text[0] == '.') {
      std::vector<TextVariable> declared;
      variables(declared, false);
      for (TextVariable& v : declared) {
        v.name = declare(v.name);
        function_->locals.push_back(v);
      }
    } else if (token.kind == Token::kWord && is(":", 1)) {
      label();
    } else if (!accept(";")) {
      instruction();
    }
  }

  void label() {
    const std::string name = unique(word());
    expect(":");
    if (accept(".branchtargets")) {
      std::vector<std::string>& targets = function_->branch_targets[name];
      do targets.push_back(word());
      while (accept(","));
      expect(";");
    } else if (is(".callprototype")) {
      fail(peek().line, "indirect calls are not supported");
    } else {
      function_->labels[name] = static_cast<int>(function_->body.size());
    }
  }

  void registers() {
    take();
    const std::string type = word().substr(1);
    do {
      const std::string name = word();
      if (accept("<")) {
        const int64_t count = integer();
        for (int64_t i = 0; i < count; ++i) function_->registers[declare(name + std::to_string(i))] = type;
        expect(">");
      } else {
        function_->registers[declare(name)] = type;
      }
    } while (accept(","));
    expect(";");
  }

  TextOperand number() {
    TextOperand operand;
    operand.kind = TextOperand::Kind::kImmediate;
    const bool negative = accept("-");
    const Token token = take();
    if (token.kind != Token::kNumber) fail(token.line, "expected an operand, got '" + token.text + "'");
    const std::string& s = token.text;
    if (s.size() > 2 && s[0] == '0' && (s[1] == 'f' || s[1] == 'F' || s[1] == 'd' || s[1] == 'D')) {
      operand.float_bits = std::tolower(s[1]) == 'f' ? 32 : 64;
      operand.value = std::strtoull(s.c_str() + 2, nullptr, 16);
      if (negative) operand.value ^= 1ull << (operand.float_bits - 1);
    } else {
      operand.value = std::strtoull(s.c_str(), nullptr, 0);
      if (negative) operand.value = 0 - operand.value;
    }
    return operand;
  }

  TextOperand operand() {
    TextOperand o;
    if (accept("{") || is("(")) {
      const char* close = accept("(") ? ")" : "}";
      o.kind = TextOperand::Kind::kVector;
      while (!accept(close)) {
        o.parts.push_back(operand());
        accept(",");
      }
    } else if (accept("[")) {
      o.kind = TextOperand::Kind::kAddress;
      if (peek().kind == Token::kWord) o.name = resolve(word());
      if (accept("+") || is("-") || peek().kind == Token::kNumber) o.value = static_cast<uint64_t>(integer());
      expect("]");
    } else if (accept("!")) {
      o = operand();
      o.negated = true;
    } else if (peek().kind == Token::kWord) {
      o.name = resolve(word());
      o.kind = o.name == "_"                        ? TextOperand::Kind::kSink
               : o.name[0] == '%'                   ? TextOperand::Kind::kRegister
               : function_->registers.count(o.name) ? TextOperand::Kind::kRegister
                                                    : TextOperand::Kind::kSymbol;
      if (accept("|")) o.second = resolve(word());
      if (o.kind == TextOperand::Kind::kSymbol && accept("+")) o.value = static_cast<uint64_t>(integer());
    } else {
      o = number();
    }
    return o;
  }

  void instruction() {
    TextInstruction in;
    in.line = peek().line;
    in.source = source_;
    if (accept("@")) {
      in.guard_negated = accept("!");
      in.guard = resolve(word());
    }
    in.opcode = word();
    while (!accept(";")) {
      in.operands.push_back(operand());
      accept(",");
    }
    paths_.push_back(scope_path_);
    function_->body.push_back(std::move(in));
  }

  // A label is looked up from the innermost scope of its user outwards.
  void resolve_labels(TextFunction& f) const {
    const auto lookup = [&](const std::string& name, const std::vector<int>& path) {
      for (size_t depth = path.size(); depth-- > 1;) {
        const std::string scoped = name + "#" + std::to_string(path[depth]);
        if (f.labels.count(scoped) || f.branch_targets.count(scoped)) return scoped;
      }
      return name;
    };
    for (size_t i = 0; i < f.body.size(); ++i) {
      for (TextOperand& o : f.body[i].operands) {
        if (o.kind == TextOperand::Kind::kSymbol) o.name = lookup(o.name, paths_[i]);
      }
    }
  }
};

}  // namespace

int64_t type_bytes(const std::string& type) {
  static const std::unordered_map<std::string, int64_t> kBytes = {
      {"b8", 1},   {"u8", 1},  {"s8", 1},    {"b16", 2},    {"u16", 2},   {"s16", 2},  {"f16", 2},
      {"bf16", 2}, {"b32", 4}, {"u32", 4},   {"s32", 4},    {"f32", 4},   {"b64", 8},  {"u64", 8},
      {"s64", 8},  {"f64", 8}, {"f16x2", 4}, {"bf16x2", 4}, {"b128", 16}, {"pred", 1}, {"tf32", 4}};
  const auto found = kBytes.find(type);
  if (found == kBytes.end()) throw std::runtime_error("unknown PTX type '." + type + "'");
  return found->second;
}

TextModule parse_ptx(const std::string& text) { return Parser(text).parse(); }

}  // namespace showo::ptx
