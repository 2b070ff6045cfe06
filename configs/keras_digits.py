"""A small convolutional Keras network for 8x8 grey digits."""

import keras


def build_model(filters: int = 16) -> keras.Model:
    """Two convolutions and two dense layers; takes [N, 8, 8, 1], gives probabilities [N, 10]."""
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(image)
    x = keras.layers.Conv2D(2 * filters, 3, activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(64, activation="relu")(x)
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(image, keras.layers.Dense(10, activation="softmax", name="probabilities")(x))
