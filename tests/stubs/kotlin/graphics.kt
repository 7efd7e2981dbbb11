// What Android.kt uses of Android.
package android.graphics

class Bitmap(private val colours: IntArray, val width: Int, val height: Int) {
    enum class Config { ARGB_8888 }

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {
        for (row in 0 until height) for (column in 0 until width)
            pixels[offset + row * stride + column] = colours[(y + row) * this.width + x + column]
    }

    companion object {
        fun createBitmap(colors: IntArray, width: Int, height: Int, config: Config) =
            Bitmap(colors, width, height)
    }
}
