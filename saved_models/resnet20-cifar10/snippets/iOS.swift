// Not compiled by reszoo's tests, which run without Xcode.
// Run an exported resnet20 on an image, on iOS. Add model-int8.tflite and labels.txt to the
// app's bundle, and the pod TensorFlowLiteSwift (and MediaPipeTasksVision).
// Input `image`: uint8 (1, 32, 32, 3). Output `probabilities`: float32 (1, 10).

import CoreGraphics
import Foundation
import MediaPipeTasksVision
import TensorFlowLite
import UIKit

// Of the model's input, and what an image is resized to before it is cut.
let (inputHeight, inputWidth, channels) = (32, 32, 3)
let (resizeHeight, resizeWidth) = (32, 32)
let batch = 1
// Bytes that an image may take, 4 a pixel.
let memory = 536870912
let outputs = 10
let modelPath = Bundle.main.path(forResource: "model-int8", ofType: "tflite")!

let support = 1.0
func kernel(_ distance: Double) -> Double { max(0, 1 - abs(distance)) }

struct Tap {
  let start: Int
  let weights: [Double]
}

// Which pixels of a line make each of `size` new ones, and with what weights.
func taps(_ length: Int, _ target: Int, _ size: Int) -> [Tap] {
  let scale = Double(length) / Double(target)
  let reach = max(scale, 1)
  let spare = target - size
  let half = spare >> 1
  let first = half + (spare & 1) * (half & 1)
  return (0..<size).map { index in
    let centre = (Double(first + index) + 0.5) * scale
    let start = max(0, Int(centre - support * reach + 0.5))
    let end = min(length, Int(centre + support * reach + 0.5))
    let weights = (start..<end).map { kernel((Double($0) + 0.5 - centre) / reach) }
    let sum = weights.reduce(0, +)
    return Tap(start: start, weights: weights.map { $0 / sum })
  }
}

func byte(_ value: Double) -> UInt8 { UInt8(min(max((value + 0.5).rounded(.down), 0), 255)) }

// The bytes of an image, red, green, blue and one unused, in sRGB.
func rgbx(_ image: CGImage) -> [UInt8] {
  var bytes = [UInt8](repeating: 0, count: image.width * image.height * 4)
  bytes.withUnsafeMutableBytes { buffer in
    let context = CGContext(
      data: buffer.baseAddress, width: image.width, height: image.height,
      bitsPerComponent: 8, bytesPerRow: image.width * 4,
      space: CGColorSpace(name: CGColorSpace.sRGB)!,
      bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
    context.draw(
      image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
  }
  return bytes
}

func level(_ rgbx: [UInt8], _ at: Int, _ c: Int) -> Double { Double(rgbx[at + c]) }

// Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
// Takes an upright image; returns inputHeight x inputWidth x channels bytes.
func prepare(_ image: CGImage) -> [UInt8] {
  let wide = max(image.width * resizeHeight / image.height, resizeWidth)
  let high = max(image.height * resizeWidth / image.width, resizeHeight)
  let columns = taps(image.width, wide, inputWidth)
  let rows = taps(image.height, high, inputHeight)
  // Only the pixels that the crop comes from take memory.
  let (left, top) = (columns[0].start, rows[0].start)
  let right = columns[inputWidth - 1].start + columns[inputWidth - 1].weights.count
  let bottom = rows[inputHeight - 1].start + rows[inputHeight - 1].weights.count
  let (across, down) = (right - left, bottom - top)
  precondition(4 * across * down <= memory, "the image is too large")
  let area = CGRect(x: left, y: top, width: across, height: down)
  let source = rgbx(image.cropping(to: area)!)
  let line = inputWidth * channels
  var low = [UInt8](repeating: 0, count: down * line)
  for y in 0..<down {
    for x in 0..<inputWidth {
      for c in 0..<channels {
        var sum = 0.0
        for (k, weight) in columns[x].weights.enumerated() {
          sum += weight * level(source, (y * across + columns[x].start - left + k) * 4, c)
        }
        low[y * line + x * channels + c] = byte(sum)
      }
    }
  }
  var pixels = [UInt8](repeating: 0, count: inputHeight * line)
  for y in 0..<inputHeight {
    for x in 0..<line {
      var sum = 0.0
      for (k, weight) in rows[y].weights.enumerated() {
        sum += weight * Double(low[(rows[y].start - top + k) * line + x])
      }
      pixels[y * line + x] = byte(sum)
    }
  }
  return pixels
}

func labels() throws -> [String] {
  let path = Bundle.main.path(forResource: "labels", ofType: "txt")!
  let text = try String(contentsOfFile: path, encoding: .utf8)
  return text.split(separator: "\n").map(String.init)
}

// With LiteRT: one number a class, in order.
func predict(_ image: CGImage, threads: Int = 4) throws -> [Float] {
  var options = Interpreter.Options()
  options.threadCount = threads
  let interpreter = try Interpreter(modelPath: modelPath, options: options)
  try interpreter.allocateTensors()
  let pixels = (0..<batch).flatMap { _ in prepare(image) }
  let input = Data(pixels)
  try interpreter.copy(input, toInputAt: 0)
  try interpreter.invoke()
  let output = try interpreter.output(at: 0).data
  let answer = output.withUnsafeBytes { Array($0.bindMemory(to: Float.self).prefix(outputs)) }
  return answer
}

// With MediaPipe, which reads names and number formats from the file: label and score.
func predictMediaPipe(_ image: CGImage) throws -> [(String, Float)] {
  let options = ImageClassifierOptions()
  options.baseOptions.modelAssetPath = modelPath
  options.runningMode = .image
  options.maxResults = 5
  let classifier = try ImageClassifier(options: options)
  // MediaPipe itself would squash the whole image, without averaging: prepared, it stays as it is.
  let pixels = prepare(image)
  let bytes: [UInt8] = (0..<inputHeight * inputWidth).flatMap {
    [pixels[3 * $0], pixels[3 * $0 + 1], pixels[3 * $0 + 2], 255]
  }
  let prepared = CGImage(
    width: inputWidth, height: inputHeight, bitsPerComponent: 8, bitsPerPixel: 32,
    bytesPerRow: inputWidth * 4, space: CGColorSpace(name: CGColorSpace.sRGB)!,
    bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue),
    provider: CGDataProvider(data: Data(bytes) as CFData)!,
    decode: nil, shouldInterpolate: false, intent: .defaultIntent)!
  let result = try classifier.classify(image: MPImage(uiImage: UIImage(cgImage: prepared)))
  let found = result.classificationResult.classifications[0].categories.map {
    ($0.categoryName ?? String($0.index), $0.score)
  }
  return found
}
