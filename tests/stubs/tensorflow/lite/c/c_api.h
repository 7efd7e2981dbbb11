// What native_tflite.cc uses of LiteRT's C interface; keeps the last input.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

struct TfLiteModel {};
struct TfLiteInterpreterOptions {};
struct TfLiteInterpreter {};
struct TfLiteTensor {};
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

inline std::vector<uint8_t> last_input;
inline TfLiteTensor stub_tensor;

inline TfLiteModel* TfLiteModelCreateFromFile(const char*) { return new TfLiteModel; }
inline void TfLiteModelDelete(TfLiteModel* model) { delete model; }
inline TfLiteInterpreterOptions* TfLiteInterpreterOptionsCreate() {
  return new TfLiteInterpreterOptions;
}
inline void TfLiteInterpreterOptionsDelete(TfLiteInterpreterOptions* it) { delete it; }
inline void TfLiteInterpreterOptionsSetNumThreads(TfLiteInterpreterOptions*, int32_t) {}
inline TfLiteInterpreter* TfLiteInterpreterCreate(const TfLiteModel*,
                                                  const TfLiteInterpreterOptions*) {
  return new TfLiteInterpreter;
}
inline void TfLiteInterpreterDelete(TfLiteInterpreter* it) { delete it; }
inline TfLiteStatus TfLiteInterpreterAllocateTensors(TfLiteInterpreter*) {
  return kTfLiteOk;
}
inline TfLiteTensor* TfLiteInterpreterGetInputTensor(const TfLiteInterpreter*, int32_t) {
  return &stub_tensor;
}
inline const TfLiteTensor* TfLiteInterpreterGetOutputTensor(const TfLiteInterpreter*,
                                                            int32_t) {
  return &stub_tensor;
}
inline TfLiteStatus TfLiteTensorCopyFromBuffer(TfLiteTensor*, const void* data,
                                               size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  last_input.assign(bytes, bytes + size);
  return kTfLiteOk;
}
inline TfLiteStatus TfLiteInterpreterInvoke(TfLiteInterpreter*) { return kTfLiteOk; }
inline TfLiteStatus TfLiteTensorCopyToBuffer(const TfLiteTensor*, void* data,
                                             size_t size) {
  // 0.25 and 0.75, or as uint8 with steps of 1/256 64 and 192.
  const float numbers[] = {0.25f, 0.75f};
  const uint8_t steps[] = {64, 192};
  std::memset(data, 0, size);
  if (size % sizeof(numbers) == 0) {
    std::memcpy(data, numbers, sizeof(numbers));
  } else {
    std::memcpy(data, steps, sizeof(steps));
  }
  return kTfLiteOk;
}
