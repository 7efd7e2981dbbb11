// What Android.kt uses of MediaPipe; answers with the first pixel.
package com.google.mediapipe.tasks.vision.imageclassifier

import android.content.Context
import com.google.mediapipe.framework.image.MPImage
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.RunningMode

class Category(private val name: String, private val score: Float) {
    fun categoryName() = name
    fun score() = score
}

class Classifications(private val found: List<Category>) {
    fun categories() = found
}

class ClassificationResult(private val heads: List<Classifications>) {
    fun classifications() = heads
}

class ImageClassifierResult(private val result: ClassificationResult) {
    fun classificationResult() = result
}

class ImageClassifier : AutoCloseable {
    class ImageClassifierOptions {
        class Builder {
            fun setBaseOptions(options: BaseOptions) = this
            fun setRunningMode(mode: RunningMode) = this
            fun setMaxResults(number: Int) = this
            fun setScoreThreshold(least: Float) = this
            fun build() = ImageClassifierOptions()
        }

        companion object {
            fun builder() = Builder()
        }
    }

    fun classify(image: MPImage): ImageClassifierResult {
        val first = IntArray(1)
        image.bitmap.getPixels(first, 0, 1, 0, 0, 1, 1)
        val category = Category("%08x".format(first[0]), image.bitmap.width.toFloat())
        return ImageClassifierResult(ClassificationResult(listOf(Classifications(listOf(category)))))
    }

    override fun close() {}

    companion object {
        fun createFromOptions(context: Context, options: ImageClassifierOptions) = ImageClassifier()
    }
}
