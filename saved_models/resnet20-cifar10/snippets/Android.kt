// Run an exported resnet20 on an image, on Android. Put model-int8.tflite and labels.txt into
// src/main/assets, and into build.gradle.kts, in the versions that you use:
//   implementation("com.google.ai.edge.litert:litert:...")
//   implementation("com.google.mediapipe:tasks-vision:...")
// Input `image`: uint8 (1, 32, 32, 3). Output `probabilities`: float32 (1, 10).

import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.RunningMode
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.max
import kotlin.math.min
import org.tensorflow.lite.Interpreter

const val FILE = "model-int8.tflite"
// Of the model's input, and what an image is resized to before it is cut.
const val HEIGHT = 32
const val WIDTH = 32
const val CHANNELS = 3
const val RESIZE_HEIGHT = 32L
const val RESIZE_WIDTH = 32L
const val BATCH = 1
const val OUTPUTS = 10

const val SUPPORT = 1.0
private fun kernel(distance: Double): Double = max(0.0, 1 - abs(distance))

private class Tap(val start: Int, val weights: DoubleArray)

// Which pixels of a line make each of `size` new ones, and with what weights.
// Bitmap.createScaledBitmap does not average, which changes the predictions.
private fun taps(length: Int, target: Long, size: Int): List<Tap> {
    val scale = length.toDouble() / target
    val reach = max(scale, 1.0)
    val spare = target - size
    val half = spare shr 1
    val first = half + (spare and 1L) * (half and 1L)
    return List(size) { index ->
        val centre = (first + index + 0.5) * scale
        val start = max(0, (centre - SUPPORT * reach + 0.5).toInt())
        val end = min(length, (centre + SUPPORT * reach + 0.5).toInt())
        val weights = DoubleArray(end - start) { kernel((start + it + 0.5 - centre) / reach) }
        val sum = weights.sum()
        Tap(start, DoubleArray(weights.size) { weights[it] / sum })
    }
}

private fun byte(value: Double): Int = (value + 0.5).toInt().coerceIn(0, 255)

private fun level(colour: Int, c: Int): Int = colour shr (16 - 8 * c) and 255

// Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
// Takes an upright image as ARGB_8888; returns HEIGHT x WIDTH x CHANNELS numbers.
// Transparency is dropped: decode with BitmapFactory.Options().inPremultiplied = false,
// which keeps the colours below it. BitmapFactory does not rotate a photo as its EXIF says.
fun prepare(image: Bitmap): IntArray {
    val (width, height) = image.width to image.height
    val across = max(width * RESIZE_HEIGHT / height, RESIZE_WIDTH)
    val down = max(height * RESIZE_WIDTH / width, RESIZE_HEIGHT)
    val columns = taps(width, across, WIDTH)
    val rows = taps(height, down, HEIGHT)
    val line = IntArray(width)
    val stride = WIDTH * CHANNELS
    // Only the rows that the crop comes from take memory, a byte each number.
    val top = rows.first().start
    val bottom = rows.last().start + rows.last().weights.size
    val wide = ByteArray((bottom - top) * stride)
    for (y in top until bottom) {
        image.getPixels(line, 0, width, 0, y, width, 1)
        for (x in 0 until WIDTH) for (c in 0 until CHANNELS) {
            val tap = columns[x]
            var sum = 0.0
            for (k in tap.weights.indices)
                sum += tap.weights[k] * level(line[tap.start + k], c)
            wide[(y - top) * stride + x * CHANNELS + c] = byte(sum).toByte()
        }
    }
    return IntArray(HEIGHT * stride) { at ->
        val tap = rows[at / stride]
        var sum = 0.0
        for (k in tap.weights.indices)
            sum += tap.weights[k] *
                (wide[(tap.start - top + k) * stride + at % stride].toInt() and 255)
        byte(sum)
    }
}

fun labels(context: Context): List<String> =
    context.assets.open("labels.txt").bufferedReader().readLines()

// With LiteRT: one number a class, in order.
class Classifier(context: Context, threads: Int = 4) : AutoCloseable {
    private val interpreter = Interpreter(
        context.assets.open(FILE).use { file ->
            val content = file.readBytes()
            ByteBuffer.allocateDirect(content.size).order(ByteOrder.nativeOrder()).put(content)
        },
        Interpreter.Options().setNumThreads(threads)
    )

    fun predict(image: Bitmap): FloatArray {
        val pixels = prepare(image)
        val input = ByteBuffer.allocateDirect(BATCH * pixels.size * 1)
            .order(ByteOrder.nativeOrder())
        repeat(BATCH) {
            for (pixel in pixels) input.put(pixel.toByte())
        }
        input.rewind()
        val output = Array(BATCH) { FloatArray(OUTPUTS) }
        interpreter.run(input, output)
        return output[0]
    }

    override fun close() = interpreter.close()
}

// With MediaPipe, which reads names and number formats from the file: label and score.
fun predictMediaPipe(context: Context, image: Bitmap): List<Pair<String, Float>> {
    val options = ImageClassifier.ImageClassifierOptions.builder()
        .setBaseOptions(BaseOptions.builder().setModelAssetPath(FILE).build())
        .setRunningMode(RunningMode.IMAGE)
        .setMaxResults(5)
        .build()
    // MediaPipe itself would squash the whole image, without averaging: prepared, it stays as it is.
    val pixels = prepare(image)
    val colours = IntArray(HEIGHT * WIDTH) {
        (255 shl 24) or (pixels[3 * it] shl 16) or (pixels[3 * it + 1] shl 8) or pixels[3 * it + 2]
    }
    val prepared = Bitmap.createBitmap(colours, WIDTH, HEIGHT, Bitmap.Config.ARGB_8888)
    return ImageClassifier.createFromOptions(context, options).use { classifier ->
        classifier.classify(BitmapImageBuilder(prepared).build())
            .classificationResult().classifications()[0].categories()
            .map { it.categoryName() to it.score() }
    }
}
