// Run an exported resnet20 on an image with ONNX Runtime's C++ interface.
// Input `image`: uint8 ("batch", 32, 32, 3). Output `probabilities`: float32 ("batch", 10).
// c++ -std=c++17 main.cc native_onnx.cc -lonnxruntime
// Names of the classes, one a line, are in labels.txt beside the file.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <vector>

#include "preprocess.h"

constexpr int64_t kBatch = 1;

class Classifier {
 public:
  // On Windows the path is a wide string.
  explicit Classifier(const ORTCHAR_T* path)
      : session_(environment_, path, Ort::SessionOptions{}) {}

  // Returns the probabilities of an image, height x width x 3 bytes.
  std::vector<float> Predict(const uint8_t* rgb, int width, int height) {
    const std::vector<uint8_t> pixels = Prepare(rgb, width, height);
    std::vector<uint8_t> data(kBatch * pixels.size());
    for (size_t at = 0; at < data.size(); ++at) {
      data[at] = pixels[at % pixels.size()];
    }
    const std::array<int64_t, 4> shape{kBatch, 32, 32, 3};
    const auto memory =
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value image = Ort::Value::CreateTensor<uint8_t>(
        memory, data.data(), data.size(), shape.data(), shape.size());
    const char* const inputs[] = {"image"};
    const char* const outputs[] = {"probabilities"};
    auto answers =
        session_.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs, 1);
    const float* first = answers[0].GetTensorData<float>();
    std::vector<float> answer(first, first + 10);
    return answer;
  }

 private:
  Ort::Env environment_{ORT_LOGGING_LEVEL_WARNING, "resnet20"};
  Ort::Session session_;
};
