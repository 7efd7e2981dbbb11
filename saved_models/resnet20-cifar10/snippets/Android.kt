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
const val SHORT_SIDE = 32
const val SIZE = 32
const val BATCH = 1
const val WIDTH = 10

const val SUPPORT = 1.0
private fun kernel(distance: Double): Double = max(0.0, 1 - abs(distance))

private class Tap(val start: Int, val weights: DoubleArray)

// Which pixels of a line make each of SIZE new ones, and with what weights.
// Bitmap.createScaledBitmap does not average, which changes the predictions.
private fun taps(length: Int, target: Long): List<Tap> {
    val scale = length.toDouble() / target
    val reach = max(scale, 1.0)
    val spare = target - SIZE
    val half = spare / 2
    val first = half + (spare % 2) * (half % 2)
    return List(SIZE) { index ->
        val centre = (first + index + 0.5) * scale
        val start = max(0, (centre - SUPPORT * reach + 0.5).toInt())
        val end = min(length, (centre + SUPPORT * reach + 0.5).toInt())
        val weights = DoubleArray(end - start) { kernel((start + it + 0.5 - centre) / reach) }
        val sum = weights.sum()
        Tap(start, DoubleArray(weights.size) { weights[it] / sum })
    }
}

private fun byte(value: Double): Int = (value + 0.5).toInt().coerceIn(0, 255)

// Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
// Takes an upright image as ARGB_8888; returns SIZE x SIZE x 3 numbers. Transparency is
// dropped: decode with BitmapFactory.Options().inPremultiplied = false, which keeps the
// colours below it. BitmapFactory does not rotate a photo as its EXIF says.
fun prepare(image: Bitmap): IntArray {
    val (width, height) = image.width to image.height
    val short = min(width, height).toLong()
    val columns = taps(width, width.toLong() * SHORT_SIDE / short)
    val rows = taps(height, height.toLong() * SHORT_SIDE / short)
    val line = IntArray(width)
    // Only the rows that the crop comes from take memory, a byte each number.
    val top = rows.first().start
    val bottom = rows.last().start + rows.last().weights.size
    val wide = ByteArray((bottom - top) * SIZE * 3)
    for (y in top until bottom) {
        image.getPixels(line, 0, width, 0, y, width, 1)
        for (x in 0 until SIZE) for (c in 0..2) {
            val tap = columns[x]
            var sum = 0.0
            for (k in tap.weights.indices)
                sum += tap.weights[k] * (line[tap.start + k] shr (16 - 8 * c) and 255)
            wide[((y - top) * SIZE + x) * 3 + c] = byte(sum).toByte()
        }
    }
    return IntArray(SIZE * SIZE * 3) { at ->
        val tap = rows[at / (SIZE * 3)]
        var sum = 0.0
        for (k in tap.weights.indices)
            sum += tap.weights[k] *
                (wide[(tap.start - top + k) * SIZE * 3 + at % (SIZE * 3)].toInt() and 255)
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
        val output = Array(BATCH) { FloatArray(WIDTH) }
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
    // MediaPipe would squeeze the whole image into a square, but the model was trained on its centre.
    val pixels = prepare(image)
    val colours = IntArray(SIZE * SIZE) {
        (255 shl 24) or (pixels[3 * it] shl 16) or (pixels[3 * it + 1] shl 8) or pixels[3 * it + 2]
    }
    val square = Bitmap.createBitmap(colours, SIZE, SIZE, Bitmap.Config.ARGB_8888)
    return ImageClassifier.createFromOptions(context, options).use { classifier ->
        classifier.classify(BitmapImageBuilder(square).build())
            .classificationResult().classifications()[0].categories()
            .map { it.categoryName() to it.score() }
    }
}
