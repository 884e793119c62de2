#include "worker/checkpoint/pickle.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/safe_text.h"
#include "base/status.h"

namespace goldfinch {
namespace {

// Everything that a pickle may import.
enum Import : int64_t { kOrderedDict, kRebuildTensor, kRebuildParameter, kF32Storage, kF16Storage, kBf16Storage };
constexpr std::pair<std::string_view, Import> kImports[] = {
    {"collections.OrderedDict", kOrderedDict},
    {"torch._utils._rebuild_tensor_v2", kRebuildTensor},
    {"torch._utils._rebuild_parameter", kRebuildParameter},
    {"torch.FloatStorage", kF32Storage},
    {"torch.HalfStorage", kF16Storage},
    {"torch.BFloat16Storage", kBf16Storage},
};

std::optional<DType> StorageDType(int64_t import) {
  switch (import) {
    case kF32Storage:
      return DType::kF32;
    case kF16Storage:
      return DType::kF16;
    case kBf16Storage:
      return DType::kBf16;
    default:
      return std::nullopt;
  }
}

// Names as in the pickle module of Python.
enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kInst = 'i',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyTuple = ')',
  kEmptyDict = '}',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

enum class Kind : uint8_t { kNone, kBool, kInt, kFloat, kString, kTuple, kList, kDict, kImport, kStorage, kTensor };
constexpr const char* kKindNames[] = {"None", "bool", "int",    "float",   "str",   "tuple",
                                      "list", "dict", "import", "storage", "tensor"};

struct Value {
  Kind kind = Kind::kNone;
  uint32_t size = 0;   // kString: bytes. kTuple: items.
  int64_t number = 0;  // kInt, kBool: the value. kImport: an Import. kString: position in the pickle. Else: index in
                       // the machine's list of such things.
};

const char* KindName(const Value& value) { return kKindNames[static_cast<int>(value.kind)]; }

struct Storage {
  std::string_view key;
  DType dtype = DType::kF32;
  int64_t elements = 0;
};

class Machine {
 public:
  explicit Machine(std::string_view pickle) : pickle_(pickle) {}

  absl::StatusOr<std::vector<PickledTensor>> Run() {
    if (pickle_.size() > kPickleBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("the pickle has ", pickle_.size(), " bytes; the limit is ", kPickleBytesMax));
    }
    for (bool stopped = false; !stopped;) {
      opcode_position_ = position_;
      GF_ASSIGN_OR_RETURN(const uint64_t opcode, Number(1));
      stopped = opcode == kStop;
      if (!stopped) GF_RETURN_IF_ERROR(Execute(static_cast<uint8_t>(opcode)));
    }
    GF_ASSIGN_OR_RETURN(const Value result, Pop());
    return Tensors(result);
  }

 private:
  template <typename... What>
  absl::Status Error(const What&... what) const {
    return absl::InvalidArgumentError(absl::StrCat("the pickle ", what..., " (at byte ", opcode_position_, ")"));
  }

  // ---- Bytes.

  absl::StatusOr<std::string_view> Bytes(uint64_t count) {
    if (count > pickle_.size() - position_) return Error("is cut short");
    const std::string_view bytes = pickle_.substr(position_, count);
    position_ += count;
    return bytes;
  }

  // Little-endian, 1 to 8 bytes.
  absl::StatusOr<uint64_t> Number(int bytes) {
    GF_ASSIGN_OR_RETURN(const std::string_view text, Bytes(bytes));
    uint64_t number = 0;
    for (int i = 0; i < bytes; ++i) number |= uint64_t{static_cast<uint8_t>(text[i])} << (8 * i);
    return number;
  }

  absl::StatusOr<std::string_view> Line() {
    const size_t end = pickle_.find('\n', position_);
    if (end == std::string_view::npos) return Error("is cut short");
    const std::string_view line = pickle_.substr(position_, end - position_);
    position_ = end + 1;
    return line;
  }

  // ---- Stack.

  void Push(Kind kind, int64_t number = 0, uint32_t size = 0) { stack_.push_back({kind, size, number}); }

  absl::StatusOr<Value> Pop() {
    if (stack_.size() == (marks_.empty() ? 0 : marks_.back())) return Error("takes a value from an empty stack");
    const Value value = stack_.back();
    stack_.pop_back();
    return value;
  }

  // The values above the newest mark, which goes.
  absl::StatusOr<std::vector<Value>> PopMark() {
    if (marks_.empty()) return Error("ends a group that it never began");
    std::vector<Value> values(stack_.data() + marks_.back(), stack_.data() + stack_.size());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }

  absl::StatusOr<std::vector<Value>> PopMany(size_t count) {
    std::vector<Value> values(count);
    for (size_t i = count; i-- > 0;) {
      GF_ASSIGN_OR_RETURN(values[i], Pop());
    }
    return values;
  }

  // The container on top, to which something is added.
  absl::StatusOr<Value> Top(Kind kind) {
    GF_ASSIGN_OR_RETURN(const Value value, Pop());
    if (value.kind != kind) {
      return Error("adds to a value of kind ", KindName(value), " as if it were a ",
                   kKindNames[static_cast<int>(kind)]);
    }
    stack_.push_back(value);
    return value;
  }

  void PushTuple(const std::vector<Value>& items) {
    Push(Kind::kTuple, std::ssize(tuple_items_), static_cast<uint32_t>(items.size()));
    tuple_items_.insert(tuple_items_.end(), items.begin(), items.end());
  }

  void PushDict() {
    Push(Kind::kDict, std::ssize(dicts_));
    dicts_.emplace_back();
  }

  std::string_view String(const Value& value) const { return pickle_.substr(value.number, value.size); }
  const Value* Items(const Value& tuple) const { return tuple_items_.data() + tuple.number; }

  // ---- Opcodes.

  absl::Status Execute(uint8_t opcode) {
    switch (opcode) {
      case kProto: {
        GF_ASSIGN_OR_RETURN(const uint64_t protocol, Number(1));
        if (protocol < 2 || protocol > 5) return Error("has protocol ", protocol, "; readable are 2 to 5");
        return absl::OkStatus();
      }
      case kFrame:
        return Bytes(8).status();
      case kMark:
        marks_.push_back(stack_.size());
        return absl::OkStatus();

      case kNone:
        Push(Kind::kNone);
        return absl::OkStatus();
      case kNewTrue:
      case kNewFalse:
        Push(Kind::kBool, opcode == kNewTrue);
        return absl::OkStatus();
      case kBinInt1:
        return PushUnsigned(1);
      case kBinInt2:
        return PushUnsigned(2);
      case kBinInt: {
        GF_ASSIGN_OR_RETURN(const uint64_t number, Number(4));
        Push(Kind::kInt, static_cast<int32_t>(number));
        return absl::OkStatus();
      }
      case kLong1:
        return PushLong();
      case kBinFloat:
        Push(Kind::kFloat);
        return Bytes(8).status();
      case kShortBinUnicode:
        return PushString(1);
      case kBinUnicode:
        return PushString(4);

      case kEmptyTuple:
        PushTuple({});
        return absl::OkStatus();
      case kTuple1:
      case kTuple2:
      case kTuple3: {
        GF_ASSIGN_OR_RETURN(const std::vector<Value> items, PopMany(opcode - kTuple1 + 1));
        PushTuple(items);
        return absl::OkStatus();
      }
      case kTuple: {
        GF_ASSIGN_OR_RETURN(const std::vector<Value> items, PopMark());
        PushTuple(items);
        return absl::OkStatus();
      }
      case kEmptyList:
        Push(Kind::kList);
        return absl::OkStatus();
      case kAppend:
        GF_RETURN_IF_ERROR(Pop().status());
        return Top(Kind::kList).status();
      case kAppends:
        GF_RETURN_IF_ERROR(PopMark().status());
        return Top(Kind::kList).status();
      case kEmptyDict:
        PushDict();
        return absl::OkStatus();
      case kSetItem: {
        GF_ASSIGN_OR_RETURN(const std::vector<Value> items, PopMany(2));
        return SetItems(items);
      }
      case kSetItems: {
        GF_ASSIGN_OR_RETURN(const std::vector<Value> items, PopMark());
        return SetItems(items);
      }

      case kBinPut:
        return Put(Number(1));
      case kLongBinPut:
        return Put(Number(4));
      case kMemoize:
        return Put(memo_.size());
      case kBinGet:
        return Get(Number(1));
      case kLongBinGet:
        return Get(Number(4));

      case kGlobal:
      case kInst: {
        GF_ASSIGN_OR_RETURN(const std::string_view module, Line());
        GF_ASSIGN_OR_RETURN(const std::string_view name, Line());
        GF_RETURN_IF_ERROR(PushImport(module, name));
        if (opcode == kInst) return Error("makes an object in a way that is not allowed: INST");
        return absl::OkStatus();
      }
      case kStackGlobal: {
        GF_ASSIGN_OR_RETURN(const std::vector<Value> names, PopMany(2));
        if (names[0].kind != Kind::kString || names[1].kind != Kind::kString) return Error("imports by no name");
        return PushImport(String(names[0]), String(names[1]));
      }
      case kBinPersId:
        return PushStorage();
      case kReduce:
        return Reduce();
      case kBuild:
        // State of an OrderedDict: torch keeps `_metadata` of modules there. Nothing in it is a weight.
        GF_RETURN_IF_ERROR(Pop().status());
        return Top(Kind::kDict).status();
      default:
        return Error(absl::StrFormat("uses opcode 0x%02x, which is not allowed", opcode));
    }
  }

  absl::Status PushUnsigned(int bytes) {
    GF_ASSIGN_OR_RETURN(const uint64_t number, Number(bytes));
    Push(Kind::kInt, static_cast<int64_t>(number));
    return absl::OkStatus();
  }

  absl::Status PushLong() {
    GF_ASSIGN_OR_RETURN(const uint64_t bytes, Number(1));
    if (bytes > 8) return Error("has an integer of ", bytes, " bytes; the limit is 8");
    GF_ASSIGN_OR_RETURN(uint64_t number, Number(static_cast<int>(bytes)));
    const int unused_bits = 64 - 8 * static_cast<int>(bytes);
    if (bytes > 0 && bytes < 8) {
      number = static_cast<uint64_t>(static_cast<int64_t>(number << unused_bits) >> unused_bits);
    }
    Push(Kind::kInt, static_cast<int64_t>(number));
    return absl::OkStatus();
  }

  absl::Status PushString(int length_bytes) {
    GF_ASSIGN_OR_RETURN(const uint64_t length, Number(length_bytes));
    const size_t begin = position_;
    GF_RETURN_IF_ERROR(Bytes(length).status());
    Push(Kind::kString, static_cast<int64_t>(begin), static_cast<uint32_t>(length));
    return absl::OkStatus();
  }

  absl::Status PushImport(std::string_view module, std::string_view name) {
    const std::string full_name = std::string(module) + "." + std::string(name);
    for (const auto& [allowed, import] : kImports) {
      if (full_name == allowed) {
        Push(Kind::kImport, import);
        return absl::OkStatus();
      }
    }
    return Error("imports ", Quoted(full_name), ", which is not allowed");
  }

  absl::Status Put(absl::StatusOr<uint64_t> key) {
    if (!key.ok()) return key.status();
    GF_ASSIGN_OR_RETURN(const Value value, Pop());
    stack_.push_back(value);
    memo_[*key] = value;
    return absl::OkStatus();
  }

  absl::Status Get(absl::StatusOr<uint64_t> key) {
    if (!key.ok()) return key.status();
    const auto found = memo_.find(*key);
    if (found == memo_.end()) return Error("recalls value ", *key, ", which it never stored");
    stack_.push_back(found->second);
    return absl::OkStatus();
  }

  absl::Status SetItems(const std::vector<Value>& items) {
    GF_ASSIGN_OR_RETURN(const Value dict, Top(Kind::kDict));
    if (items.size() % 2 != 0) return Error("gives a dict a key without a value");
    std::vector<Value>& entries = dicts_[dict.number];
    entries.insert(entries.end(), items.begin(), items.end());
    return absl::OkStatus();
  }

  // ("storage", torch.BFloat16Storage, "12", "cpu", 4096)
  absl::Status PushStorage() {
    GF_ASSIGN_OR_RETURN(const Value id, Pop());
    const auto not_a_storage = [this] { return Error("refers to something that is not a storage"); };
    if (id.kind != Kind::kTuple || id.size != 5) return not_a_storage();
    const Value* items = Items(id);
    if (items[0].kind != Kind::kString || String(items[0]) != "storage" || items[1].kind != Kind::kImport ||
        !StorageDType(items[1].number) || items[2].kind != Kind::kString || items[3].kind != Kind::kString ||
        items[4].kind != Kind::kInt) {
      return not_a_storage();
    }
    Push(Kind::kStorage, std::ssize(storages_));
    storages_.push_back({String(items[2]), *StorageDType(items[1].number), items[4].number});
    return absl::OkStatus();
  }

  absl::Status Reduce() {
    GF_ASSIGN_OR_RETURN(const std::vector<Value> call, PopMany(2));
    if (call[0].kind != Kind::kImport || call[1].kind != Kind::kTuple) {
      return Error("calls a ", KindName(call[0]), " with a ", KindName(call[1]));
    }
    const Value* args = Items(call[1]);
    const uint32_t count = call[1].size;
    switch (call[0].number) {
      case kOrderedDict:
        if (count != 0) return Error("makes an OrderedDict from ", count, " arguments; a state dict's has none");
        PushDict();
        return absl::OkStatus();
      case kRebuildTensor:
        return RebuildTensor(args, count);
      case kRebuildParameter:  // (tensor, requires_grad, hooks)
        if (count == 0 || args[0].kind != Kind::kTensor) {
          return Error("makes a parameter of something else than a tensor");
        }
        stack_.push_back(args[0]);
        return absl::OkStatus();
      default:
        return Error("calls a storage type, which is not allowed");
    }
  }

  // (storage, offset, sizes, strides, requires_grad, hooks[, metadata])
  absl::Status RebuildTensor(const Value* args, uint32_t count) {
    if (count < 6 || count > 7 || args[0].kind != Kind::kStorage || args[1].kind != Kind::kInt ||
        args[2].kind != Kind::kTuple || args[3].kind != Kind::kTuple || args[2].size != args[3].size) {
      return Error("makes a tensor from arguments that are not those of a tensor");
    }
    const Storage& storage = storages_[args[0].number];
    PickledTensor tensor;
    tensor.storage = storage.key;
    tensor.dtype = storage.dtype;
    tensor.storage_elements = storage.elements;
    tensor.view.offset_elements = args[1].number;
    tensor.view.rank = static_cast<int>(args[2].size);
    // Deeper tensors are refused when their name is known; only their rank is kept.
    for (int axis = 0; axis < std::min(tensor.view.rank, 4); ++axis) {
      const Value size = Items(args[2])[axis];
      const Value stride = Items(args[3])[axis];
      if (size.kind != Kind::kInt || stride.kind != Kind::kInt) {
        return Error("gives a tensor a size that is no integer");
      }
      tensor.view.sizes[axis] = size.number;
      tensor.view.strides[axis] = stride.number;
    }
    Push(Kind::kTensor, std::ssize(tensors_));
    tensors_.push_back(tensor);
    return absl::OkStatus();
  }

  // ---- Result.

  absl::StatusOr<std::vector<PickledTensor>> Tensors(const Value& result) const {
    if (result.kind != Kind::kDict) {
      return absl::InvalidArgumentError(
          absl::StrCat("the pickle holds a ", KindName(result), ", not a dict of tensors"));
    }
    const std::vector<Value>& entries = dicts_[result.number];
    std::vector<PickledTensor> tensors;
    absl::flat_hash_set<std::string_view> names;
    std::vector<std::string> others;  // for the message when there is no tensor
    for (size_t i = 0; i < entries.size(); i += 2) {
      const Value& key = entries[i];
      const Value& value = entries[i + 1];
      const std::string_view name = key.kind == Kind::kString ? String(key) : "";
      if (value.kind != Kind::kTensor) {
        if (others.size() < 5) others.push_back(absl::StrCat(Quoted(name), " (", KindName(value), ")"));
        continue;
      }
      if (name.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("a tensor's name must be a non-empty string, got ", KindName(key)));
      }
      if (!names.insert(name).second) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), " appears twice"));
      }
      PickledTensor tensor = tensors_[value.number];
      if (tensor.view.rank > 4) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", Quoted(name), " has ", tensor.view.rank, " dimensions; the limit is 4"));
      }
      tensor.name = name;
      tensors.push_back(tensor);
    }
    if (tensors.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("the file's dict holds no tensor; it holds ",
                                                     others.empty() ? "nothing" : absl::StrJoin(others, ", ")));
    }
    return tensors;
  }

  const std::string_view pickle_;
  size_t position_ = 0;
  size_t opcode_position_ = 0;
  std::vector<Value> stack_;
  std::vector<size_t> marks_;  // stack sizes
  absl::flat_hash_map<uint64_t, Value> memo_;

  // What values refer to. Only ever appended to.
  std::vector<Value> tuple_items_;
  std::vector<std::vector<Value>> dicts_;  // key, value, key, value, ...
  std::vector<Storage> storages_;
  std::vector<PickledTensor> tensors_;  // without names
};

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadStateDict(std::string_view pickle) { return Machine(pickle).Run(); }

}  // namespace goldfinch
