"""Colours: as they are stored, or by the file's ICC profile; held against sRGB values that are computed from the standards."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from mmrope import MediaError, Processor
from mmrope.preprocess import hdr, load_image, open_video
from tests.support.profiles import GRAY_PROFILE, P3_PROFILE, SRGB_PROFILE, cmyk_profile, p3_as_srgb

PHOTOGRAPH = data.chelsea()[:96, :128]
NEUTRAL = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)  # [1, 256, 3]


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def apart(one, other):
    return int(np.abs(one.astype(int) - other).max())


def test_display_p3_is_srgb_by_its_definition():
    everything = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(18, -1, 3).astype(np.uint8)
    for pixels in (PHOTOGRAPH, everything):
        content = encoded(Image.fromarray(pixels), icc_profile=P3_PROFILE)
        assert apart(load_image(content, color="srgb"), p3_as_srgb(pixels)) <= 1
        np.testing.assert_array_equal(load_image(content), pixels)
    assert apart(p3_as_srgb(PHOTOGRAPH), PHOTOGRAPH) > 10  # it is not a matter of rounding


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "WEBP", "AVIF", "PNG"])
def test_in_every_format_that_holds_a_profile(form):
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form in ("JPEG", "AVIF") else {}
    content = encoded(Image.fromarray(PHOTOGRAPH), form, icc_profile=P3_PROFILE, **options)
    assert apart(load_image(content, color="srgb"), p3_as_srgb(load_image(content))) <= 1
    opened = Image.open(io.BytesIO(content))  # a PIL image given directly is no exception
    np.testing.assert_array_equal(load_image(opened, color="srgb"), load_image(content, color="srgb"))


def test_srgb_and_neutral_colours_stay():
    for profile in (SRGB_PROFILE, P3_PROFILE):
        assert apart(load_image(encoded(Image.fromarray(NEUTRAL), icc_profile=profile), color="srgb"), NEUTRAL) <= 1
    srgb = encoded(Image.fromarray(PHOTOGRAPH), icc_profile=SRGB_PROFILE)
    assert apart(load_image(srgb, color="srgb"), PHOTOGRAPH) <= 1


def test_without_a_profile_both_are_one():
    image = Image.fromarray(PHOTOGRAPH)
    for source in (encoded(image), encoded(image.convert("CMYK"), "TIFF"), encoded(image.convert("L")), image, PHOTOGRAPH):
        np.testing.assert_array_equal(load_image(source, color="srgb"), load_image(source))


def test_transparency_is_laid_on_afterwards():
    """The background is sRGB as it stands, and the alpha is that of the file."""
    clear = Image.fromarray(PHOTOGRAPH)
    clear.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8), (96, 1))))
    content = encoded(clear, icc_profile=P3_PROFILE)
    seen = load_image(content, color="srgb", background=(10, 200, 30))
    alpha = np.asarray(clear)[..., 3:] / 255
    assert apart(seen, np.round(p3_as_srgb(PHOTOGRAPH) * alpha + np.array([10, 200, 30]) * (1 - alpha))) <= 1
    palette = Image.fromarray(PHOTOGRAPH).quantize(16)
    content = encoded(palette, icc_profile=P3_PROFILE, transparency=3)
    expected = p3_as_srgb(np.asarray(palette.convert("RGB")))
    expected[np.asarray(palette) == 3] = 255
    assert apart(load_image(content, color="srgb"), expected) <= 1


def test_grey():
    """By a profile of greys, and by one of colours, in which grey is red, green and blue alike."""
    grey = Image.fromarray(NEUTRAL[..., 0])
    light = np.arange(256) / 255
    lighter = np.round((1.055 * light ** (1 / 2.4) - 0.055).clip(light * 12.92 * (light <= 0.0031308)) * 255)
    alpha = Image.new("L", grey.size, 255)
    deep = Image.fromarray(NEUTRAL[..., 0].astype(np.uint16) * 257)
    for image in (grey, Image.merge("LA", (grey, alpha)), deep):
        seen = load_image(encoded(image, icc_profile=GRAY_PROFILE), color="srgb")
        assert apart(seen[0, 16:, 0], lighter[16:]) <= 1
        assert (seen == seen[..., :1]).all()
    assert apart(load_image(encoded(grey, icc_profile=P3_PROFILE), color="srgb"), NEUTRAL) <= 1
    clear = load_image(encoded(grey, icc_profile=GRAY_PROFILE, transparency=200), color="srgb", background=(1, 2, 3))
    assert clear[0, 200].tolist() == [1, 2, 3]


def test_cmyk_by_its_profile():
    """One with black ink alone: half of it is lightness 50, which is sRGB's 119."""
    inks = np.zeros((1, 3, 4), np.uint8)
    inks[0, :, 3], inks[0, :, 0] = (0, 128, 255), 70
    content = encoded(Image.frombytes("CMYK", (3, 1), inks.tobytes()), "TIFF", icc_profile=cmyk_profile())
    assert apart(load_image(content, color="srgb")[0, :, 0], np.array([255, 119, 0])) <= 2
    assert load_image(content)[0].tolist() != load_image(content, color="srgb")[0].tolist()


@pytest.mark.parametrize(("form", "options"), [("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {"quality": 95})])
def test_animations(form, options):
    first, second = Image.fromarray(PHOTOGRAPH), Image.fromarray(255 - PHOTOGRAPH)
    content = encoded(first, form, save_all=True, append_images=[second], icc_profile=P3_PROFILE, **options)
    stored, seen = (list(open_video(content, color=color).decode([0, 1]).frames) for color in ("stored", "srgb"))
    for frame, colours in zip(stored, seen, strict=True):
        assert apart(colours, p3_as_srgb(frame)) <= 1


def test_a_processor_has_it_as_a_setting(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTOGRAPH).save(path, icc_profile=P3_PROFILE)
    processor = Processor(color="srgb")
    items = [{"type": "image", "image": path}], [{"type": "image", "image": load_image(path, color="srgb")}]
    seen, given = (processor([{"role": "user", "content": item}])["pixel_values"] for item in items)
    assert (seen == given).all()
    assert (seen != Processor()([{"role": "user", "content": items[0]}])["pixel_values"]).any()
    frames = {"type": "video", "video": [path] * 4, "fps": 2}
    film = processor([{"role": "user", "content": [frames]}])["pixel_values_videos"]
    still = processor([{"role": "user", "content": [{**frames, "video": [load_image(path, color="srgb")] * 4}]}])
    assert (film == still["pixel_values_videos"]).all()
    processor.save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).color == "srgb"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (bytes(200), r"^300 bytes has a damaged ICC profile, which color='stored' ignores: "),
        (P3_PROFILE[:200], r"has a damaged ICC profile, which color='stored' ignores: "),
        (P3_PROFILE.replace(b"bTRC", b"xTRC"), r"has a damaged ICC profile, which color='stored' ignores: "),
        (GRAY_PROFILE, r"has RGB pixels and an ICC profile of GRAY; color='stored' ignores the profile"),
        (cmyk_profile(), r"has RGB pixels and an ICC profile of CMYK; color='stored' ignores the profile"),
    ],
)
def test_profiles_that_cannot_be_used(profile, message):
    content = encoded(Image.fromarray(PHOTOGRAPH[:4, :4]), icc_profile=profile).ljust(300, b"\0")
    assert load_image(content).shape == (4, 4, 3)
    with pytest.raises(MediaError, match=message):
        load_image(content, color="srgb")


def test_light_by_pq_is_that_of_its_standard():
    """The signals of 0, 100, 1000 and 10,000 candela per square metre (SMPTE ST 2084); 1 is the reference white, 203 of them."""
    light = hdr._pq(np.array([0, 0.508078, 0.751827, 1]))
    np.testing.assert_allclose(203 * light, [0, 100, 1000, 10_000], rtol=1e-5)


def test_other_choices_are_refused():
    for use in (lambda c: load_image(PHOTOGRAPH, color=c), lambda c: open_video(b"", color=c), lambda c: Processor(color=c)):
        with pytest.raises(ValueError, match=r"color must be 'stored' or 'srgb', got 'p3'"):
            use("p3")
