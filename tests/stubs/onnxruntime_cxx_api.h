// What native_onnx.cc uses of ONNX Runtime's C++ interface; keeps the last input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define ORTCHAR_T char
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

inline std::vector<uint8_t> last_input;

namespace Ort {
struct Env {
  Env(OrtLoggingLevel, const char*) {}
};
struct SessionOptions {};
struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return {}; }
};
struct Value {
  Value() = default;
  Value(Value&&) = default;
  template <typename T>
  static Value CreateTensor(const MemoryInfo&, T* data, size_t count,
                            const int64_t* shape, size_t rank) {
    size_t product = 1;
    for (size_t at = 0; at < rank; ++at) product *= static_cast<size_t>(shape[at]);
    Value value;
    if (product == count)
      value.bytes.assign(reinterpret_cast<uint8_t*>(data),
                         reinterpret_cast<uint8_t*>(data + count));
    return value;
  }
  template <typename T>
  const T* GetTensorData() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  std::vector<uint8_t> bytes;
};
struct Session {
  Session(const Env&, const ORTCHAR_T*, const SessionOptions&) {}
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value* inputs,
                         size_t, const char* const*, size_t) {
    last_input = inputs[0].bytes;
    const float answers[] = {0.25f, 0.75f, 0, 0, 0, 0, 0, 0};
    std::vector<Value> values(1);
    values[0].bytes.resize(sizeof(answers));
    std::memcpy(values[0].bytes.data(), answers, sizeof(answers));
    return values;
  }
};
}  // namespace Ort
