// What Android.kt uses of MediaPipe.
package com.google.mediapipe.tasks.vision.core

enum class RunningMode { IMAGE, VIDEO, LIVE_STREAM }
