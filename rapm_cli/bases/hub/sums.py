"""What certain commits are known to hold: whoever serves such a file, a mirror too, must serve these bytes."""

# The sha256 of files at a commit, as the hub told them when rapm was written for it.
SHA256 = {
    "462165984030d82259a11f4367a4eed129e94a7b": {  # stabilityai/stable-diffusion-xl-base-1.0
        "text_encoder/model.fp16.safetensors": "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
        "text_encoder_2/model.fp16.safetensors": "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
        "unet/diffusion_pytorch_model.fp16.safetensors": (
            "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139"
        ),
        "vae/diffusion_pytorch_model.fp16.safetensors": (
            "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68"
        ),
    }
}
