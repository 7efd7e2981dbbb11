// What Android.kt uses of Android.
package android.content

import java.io.File
import java.io.InputStream

class AssetManager(private val folder: String) {
    fun open(name: String): InputStream = File(folder, name).inputStream()
}

open class Context(folder: String) {
    val assets = AssetManager(folder)
}
