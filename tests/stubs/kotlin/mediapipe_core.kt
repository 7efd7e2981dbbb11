// What Android.kt uses of MediaPipe.
package com.google.mediapipe.tasks.core

class BaseOptions {
    class Builder {
        fun setModelAssetPath(path: String) = this
        fun build() = BaseOptions()
    }

    companion object {
        fun builder() = Builder()
    }
}
