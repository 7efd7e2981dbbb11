// What Android.kt uses of LiteRT; keeps the last input.
package org.tensorflow.lite

import java.nio.ByteBuffer

class Interpreter(model: ByteBuffer, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(number: Int): Options = this
    }

    fun run(input: Any, output: Any) {
        val buffer = input as ByteBuffer
        lastInput = ByteArray(buffer.remaining()).also { buffer.get(it) }
        val first = (output as Array<*>)[0]
        if (first is FloatArray) { first[0] = 0.25f; first[1] = 0.75f }
        if (first is ByteArray) { first[0] = 64; first[1] = 192.toByte() }
    }

    override fun close() {}

    companion object {
        var lastInput = ByteArray(0)
    }
}
