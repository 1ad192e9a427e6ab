import ctypes, os, io, sys, time, tempfile, random, struct
sys.path.insert(0,os.getcwd())
from activities.bucket.dzi import Pyramid
from PIL import Image
lib=ctypes.CDLL(os.environ.get('CUTTER','/tmp/cutter.so'))
class Page(ctypes.Structure):
    _fields_=[("pixels",ctypes.c_void_p),("stride",ctypes.c_uint64),("width",ctypes.c_uint32),("height",ctypes.c_uint32),("blue_first",ctypes.c_uint32),("tile",ctypes.c_uint32),("overlap",ctypes.c_uint32),("preview_level",ctypes.c_uint32),("preview",ctypes.c_void_p),("quantizers",ctypes.c_char_p),("huffman",ctypes.c_char_p),("limit",ctypes.c_uint64),("file",ctypes.c_int32)]
def std_tables():
    im=Image.effect_noise((16,16),80).convert("RGB"); b=io.BytesIO(); im.save(b,"JPEG",quality=85,subsampling=0); d=b.getvalue(); i=2; t={}
    while d[i+1]!=0xda:
        n=int.from_bytes(d[i+2:i+4],'big')
        if d[i+1]==0xc4:
            seg=d[i+4:i+2+n]
            while seg: c=sum(seg[1:17]); t[seg[0]]=seg[1:17+c]; seg=seg[17+c:]
        i+=2+n
    return t[0]+t[0x10]+t[1]+t[0x11]
STD=std_tables()
LUMA=[16,11,10,16,24,40,51,61,12,12,14,19,26,58,60,55,14,13,16,24,40,57,69,56,14,17,22,29,51,87,80,62,18,22,37,56,68,109,103,77,24,35,55,64,81,104,113,92,49,64,78,87,103,121,120,101,72,92,95,98,112,100,103,99]
CHROMA=[17,18,24,47,99,99,99,99,18,21,26,66,99,99,99,99,24,26,56,99,99,99,99,99,47,66,99,99,99,99,99,99]+[99]*32
def quant(q):
    s=5000//q if q<50 else 200-2*q
    return bytes(min(255,max(1,(v*s+50)//100)) for v in LUMA+CHROMA)
def cut(pixels_addr,w,h,stride=None,tile=256,overlap=1,q=85,bgr=0,path='/dev/shm/cut.bin',huff=STD,limit=1<<40,plevel=None):
    p=Pyramid(w,h,tile,overlap)
    if plevel is None: plevel=next((l for l in range(p.max_level) if max(p.level_size(l))>=1024),p.max_level)
    pw,ph=p.level_size(plevel); prev=ctypes.create_string_buffer(pw*ph*3)
    fd=os.open(path,os.O_RDWR|os.O_CREAT|os.O_TRUNC)
    a=Page(pixels_addr,stride or 3*w,w,h,bgr,tile,overlap,plevel,ctypes.addressof(prev),quant(q),huff,limit,fd)
    r=lib.sitelink_cut(ctypes.byref(a)); os.close(fd)
    return r,prev.raw[:pw*ph*3],(plevel,pw,ph)
def read(path='/dev/shm/cut.bin'):
    d=open(path,'rb').read(); off,n,m,magic=struct.unpack('<QII8s',d[-24:])
    tiles={};whites={}
    for i in range(n):
        l,c,r,s,o=struct.unpack_from('<IIIIQ',d,off+24*i); tiles[l,c,r]=d[o:o+s]
    for i in range(m):
        l,c,r,s,o=struct.unpack_from('<IIIIQ',d,off+24*(n+i)); whites[c,r]=d[o:o+s]
    return tiles,whites
