from .modalities import read_wav as read_wav, spectrogram as spectrogram
