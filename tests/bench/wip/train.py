exec(open(__file__.rsplit('/',1)[0]+'/proto.py').read())
sys.path.insert(0,os.getcwd())
from tests.bench.train_huffman import *
import ctypes as C, pickle
from activities.bucket.records import UploadOptions
from activities.render import raster
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
O=UploadOptions(); rnd=random.Random(1)
counters=[Counter() for _ in range(4)]; sample=[]
for f in map(Path, sys.argv[1:]):
    pdf=PdfFile(f); pages=[p for p in measure(pdf,O,2000).pages if p.reason is None]
    for p in rnd.sample(pages,min(3,len(pages))):
        buf=raster.PixelBuffer(); raster.draw(pdf,p.number,p.width,p.height,buf)
        r,_,_=cut(C.addressof(C.c_ubyte.from_buffer(buf._memory)),p.width,p.height); assert r==0
        t,_=read(); t=list(t.values()); pick=rnd.sample(t,min(60,len(t)))
        for j in pick: count(j,counters)
        sample+=pick
        print(f.name[:30],p.number,len(t),sum(map(len,pick)),flush=True)
tabs=[table(c,s) for c,s in zip(counters,(DC_SYMBOLS,AC_SYMBOLS,DC_SYMBOLS,AC_SYMBOLS))]
pickle.dump((tabs,counters),open('/tmp/huff.pickle','wb'))
old=[STD[:28],STD[28:206],STD[206:234],STD[234:412]]
for n,o,c,s in zip(tabs,old,counters,(DC_SYMBOLS,AC_SYMBOLS)*2):
    def bits(t):
        l={sym:ln for (ln,_),sym in codes(t).items()}; return sum(l[k]*v for k,v in c.items())
    print(len(n),bits(o)/8e6,bits(n)/8e6, bits(n)/bits(o))
