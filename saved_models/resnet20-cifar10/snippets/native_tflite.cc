// Run an exported resnet20 on an image with LiteRT's C interface, from C++.
// Input `image`: uint8 (1, 32, 32, 3). Output `probabilities`: float32 (1, 10).
// c++ -std=c++17 main.cc native_tflite.cc -ltensorflowlite_c
// Names of the classes, one a line, are in labels.txt beside the file.

#include <memory>
#include <stdexcept>
#include <vector>

#include "preprocess.h"
#include "tensorflow/lite/c/c_api.h"

constexpr size_t kBatch = 1;

class Classifier {
 public:
  explicit Classifier(const char* path, int threads = 4)
      : model_(TfLiteModelCreateFromFile(path), TfLiteModelDelete) {
    std::unique_ptr<TfLiteInterpreterOptions, decltype(&TfLiteInterpreterOptionsDelete)>
        options(TfLiteInterpreterOptionsCreate(), TfLiteInterpreterOptionsDelete);
    TfLiteInterpreterOptionsSetNumThreads(options.get(), threads);
    interpreter_.reset(TfLiteInterpreterCreate(model_.get(), options.get()));
    if (!interpreter_) throw std::runtime_error("the model cannot be opened");
    Check(TfLiteInterpreterAllocateTensors(interpreter_.get()));
  }

  // Returns the probabilities of an image, height x width x 3 bytes.
  std::vector<float> Predict(const uint8_t* rgb, int width, int height) {
    const std::vector<uint8_t> pixels = Prepare(rgb, width, height);
    std::vector<uint8_t> data(kBatch * pixels.size());
    for (size_t at = 0; at < data.size(); ++at) data[at] = pixels[at % pixels.size()];
    Check(TfLiteTensorCopyFromBuffer(
        TfLiteInterpreterGetInputTensor(interpreter_.get(), 0), data.data(),
        data.size() * sizeof(uint8_t)));
    Check(TfLiteInterpreterInvoke(interpreter_.get()));
    std::vector<float> output(kBatch * 10);
    Check(TfLiteTensorCopyToBuffer(
        TfLiteInterpreterGetOutputTensor(interpreter_.get(), 0), output.data(),
        output.size() * sizeof(float)));
    std::vector<float> answer(output.begin(), output.begin() + 10);
    return answer;
  }

 private:
  static void Check(TfLiteStatus status) {
    if (status != kTfLiteOk) throw std::runtime_error("LiteRT failed");
  }

  std::unique_ptr<TfLiteModel, decltype(&TfLiteModelDelete)> model_;
  std::unique_ptr<TfLiteInterpreter, decltype(&TfLiteInterpreterDelete)> interpreter_{
      nullptr, TfLiteInterpreterDelete};
};
