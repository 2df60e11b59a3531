from .modalities import read_wav as read_wav
from .modalities import spectrogram as spectrogram
